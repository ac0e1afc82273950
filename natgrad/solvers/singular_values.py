"""A singular value decomposition that keeps the columns and rows that are small beside others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.linalg import lapack
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
TALL = 1.5  # rows to columns, above which a QR factorisation comes first
MAX_JACOBI = 512  # min(m, n) above which Jacobi's rotations would take minutes
# Norms below this are computed again in units of the largest entry: their squares underflow.
TINY = 1e-140
# What LAPACK's dgejsv is asked for.
JOBS = {
    "joba": 2,  # pivot rows and columns, so that small ones of either keep their digits
    "jobu": 0,  # U (m, n)
    "jobv": 0,  # V (n, n)
    "jobr": 0,  # no small column counts as zero
    "jobt": 1,  # transpose a square matrix where that converges faster
    "jobp": 1,  # move denormal entries, which are slow, off zero
}


class SingularValues(NamedTuple):
    """The decomposition J = U diag(values) Vᵀ.

    Attributes
    ----------
    values
        σ (k,), descending; 0 below the rounding of J.
    left
        U (m, k); with ``reflectors``, U = Q left.
    right
        Vᵀ (k, n).
    reflectors
        Q of a QR factorisation of J, as ``torch.geqrf`` returns it, or None.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    reflectors: tuple[Tensor, Tensor] | None

    def project(self, r: Tensor) -> Tensor:
        """Uᵀr (k,).

        Parameters
        ----------
        r
            A vector (m,), float64.
        """
        if self.reflectors is not None:
            r = torch.ormqr(*self.reflectors, r.unsqueeze(1), transpose=True).squeeze(1)
        projected: Tensor = self.left.mT @ r[: len(self.left)]
        return projected


def singular_values(J: Tensor, eps: float) -> SingularValues:
    """Decompose J by singular values, with those below its rounding set to 0.

    Parameters
    ----------
    J
        Matrix (m, n), float64 and finite, of unit size.
    eps
        Relative error to which every entry of J was rounded.

    Returns
    -------
    SingularValues
        With min(m, n) values, descending.

    Notes
    -----
    The common algorithm leaves an error of some n eps ‖J‖ in every singular value, so that a column
    or row that is smaller than that beside another is lost. Where norms differ by as much, Jacobi's
    one-sided rotations take over, whose error is relative to each column, and with pivoting to each
    row. They take ten times as long: above min(m, n) = 512 they are left out.

    Rounding every entry of J moves σᵢ by eps times the columns' norms weighted by vᵢ, or by the
    entries weighted by uᵢ and vᵢ, if that is less. A bound by ‖J‖ alone would zero columns and rows
    that are small but known to all their digits.

    Source: Demmel & Veselić, "Jacobi's method is more accurate than QR", 1992; Drmač & Veselić,
    "New fast and accurate Jacobi SVD algorithm", 2008 (LAPACK's dgejsv).
    """
    m, n = J.shape
    columns, rows = norms(J, 0), norms(J, 1)
    left_over = (min(m, n) + max(m, n) ** 0.5) * EPS  # error of QR and SVD by ‖J‖, as measured
    by_column, by_row = _ratio(columns) * left_over, _ratio(rows) * left_over
    # The smallest column and row should keep three digits, and an entry small in both one.
    graded = max(by_column, by_row) > 1e-3 or by_column * by_row > 0.1 * left_over
    graded = graded and min(m, n) <= MAX_JACOBI
    core, reflectors = J, None
    # For tall J, take a QR first and keep Q's reflectors (half the time). Small columns keep their
    # digits in R, small rows do not.
    if m > TALL * n and not (graded and by_row > 1e-6):
        reflectors = torch.geqrf(J)
        core = reflectors[0][:n].triu()
    # For wide J the vᵢ align with the rounding error, which grows with the root of n / m.
    widening = max(1.0, n / m) ** 0.5
    if graded:
        left, values, right = _jacobi(core)
        by_columns = norms(right * columns, 1)
        # Pivoting keeps the digits of small rows and columns where J has full rank; where not, what
        # elimination leaves of them may be the rounding of larger ones.
        by_rows = norms(left.mT * rows, 1) if reflectors is None else by_columns
        both = min(by_column, by_row) > 1e-9
        floor = by_columns if m >= n else by_rows
        floor = left_over * (floor if both else torch.minimum(by_columns, by_rows))
    else:
        left, values, right = torch.linalg.svd(core, full_matrices=False)
        by_columns = norms(right * columns, 1)
        floor = (left_over * values[0]).expand_as(values)
    noise = eps * widening * by_columns
    doubtful = (values <= noise) & (values > floor)
    if not graded:  # a value below the rounding of the smallest row is 0 by either bound
        doubtful &= values > eps * torch.where(rows > 0, rows, torch.inf).amin()
    if bool(doubtful.any()):
        u = left[:, doubtful]
        if reflectors is not None:
            padded = torch.cat([u, u.new_zeros(m - len(u), u.shape[1])])
            u = torch.ormqr(*reflectors, padded)
        squares = (u.square().mT @ J.square()) * right[doubtful].square()
        by_entry = eps * max(m, n) ** 0.5 * squares.sum(dim=1).sqrt()
        noise[doubtful] = torch.minimum(noise[doubtful], by_entry)
    values = torch.where(values > torch.maximum(noise, floor), values, 0.0)
    # A parameter that J does not depend on stays unchanged, bit for bit.
    right = torch.where(columns > 0, right, 0.0)
    return SingularValues(values, left, right, reflectors)


def norms(matrix: Tensor, dim: int) -> Tensor:
    """The 2-norms of a matrix along a dimension, without over- or underflow.

    Parameters
    ----------
    matrix
        (m, n), float64.
    dim
        0 for the norms of columns (n,), 1 for those of rows (m,).
    """
    # Four times as fast as vector_norm over columns.
    found: Tensor = matrix.square().sum(dim=dim).sqrt()
    if bool((found > TINY).all() & torch.isfinite(found).all()):
        return found
    sizes = matrix.abs().amax(dim=dim, keepdim=True)
    sizes = torch.where((sizes > 0) & torch.isfinite(sizes), sizes, 1.0)
    found = torch.linalg.vector_norm(matrix / sizes, dim=dim) * sizes.squeeze(dim)
    return found


def _ratio(sizes: Tensor) -> float:
    """The largest size over the smallest nonzero one; 1 where all are 0."""
    least = torch.where(sizes > 0, sizes, torch.inf).amin()
    return float(torch.clamp(sizes.amax() / least, min=1.0))


def _jacobi(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ and Vᵀ by LAPACK's dgejsv, which needs at least as many rows as columns."""
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = _jacobi(matrix.mT)
        return left.mT, values, right.mT
    values, left, right, work, _, info = lapack.dgejsv(matrix.cpu().numpy(), **JOBS)
    if info:  # no convergence within 30 sweeps; no known matrix needs more
        left, found, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, found, right
    like = [torch.as_tensor(array, device=matrix.device) for array in (left, values, right)]
    return like[0], like[1] * (work[0] / work[1]), like[2].mT

"""A singular value decomposition that keeps the columns and rows that are small beside others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.linalg import lapack
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
TALL = 1.5  # rows to columns
# Of a matrix with more columns and rows Jacobi's rotations take minutes.
MAX_JACOBI = 512
# Norms below it are taken again in units of the largest entry: their squares leave the range.
TINY = 1e-140


class SingularValues(NamedTuple):
    """J = U diag(values) Vᵀ; ``values`` are 0 where rounding of J alone explains them.

    U is ``left`` behind the ``reflectors`` of a QR factorisation, where there are any.
    """

    values: Tensor
    left: Tensor
    right: Tensor  # Vᵀ (k, n)
    reflectors: tuple[Tensor, Tensor] | None

    def project(self, r: Tensor) -> Tensor:
        """Uᵀr."""
        if self.reflectors is not None:
            r = torch.ormqr(*self.reflectors, r.unsqueeze(1), transpose=True).squeeze(1)
        projected: Tensor = self.left.mT @ r[: len(self.left)]
        return projected


def singular_values(J: Tensor, eps: float) -> SingularValues:
    """Decompose J (m, n), float64 and finite, of unit size, whose entries were rounded by ``eps``.

    The common algorithm leaves an error of some n eps ‖J‖ in every singular value, so that a column
    or row that is smaller than that beside another is lost. Where norms differ by as much, Jacobi's
    one-sided rotations take over, whose error is relative to each column, and with pivoting to each
    row. They take ten times as long: above min(m, n) = 512 they are left out.

    Zero is what rounding explains. Rounding every entry of J moves σᵢ by eps times the columns'
    norms weighted by vᵢ, or by the entries weighted by uᵢ and vᵢ, if that is less. A bound by ‖J‖
    alone would take columns and rows that are small but known to all their digits.

    Source: Demmel & Veselić, "Jacobi's method is more accurate than QR", 1992; Drmač & Veselić,
    "New fast and accurate Jacobi SVD algorithm", 2008 (LAPACK's dgejsv).
    """
    m, n = J.shape
    columns, rows = norms(J, 0), norms(J, 1)
    left_over = (min(m, n) + max(m, n) ** 0.5) * EPS  # by QR and SVD, of ‖J‖; as measured
    by_column, by_row = _ratio(columns) * left_over, _ratio(rows) * left_over
    # Three digits of the smallest column and row should be left, and one of an entry small in both.
    graded = max(by_column, by_row) > 1e-3 or by_column * by_row > 0.1 * left_over
    graded = graded and min(m, n) <= MAX_JACOBI
    core, reflectors = J, None
    # A tall J by its triangle, whose reflectors are kept as they are: half the time. Columns keep
    # their digits in it, small rows do not.
    if m > TALL * n and not (graded and by_row > 1e-6):
        reflectors = torch.geqrf(J)
        core = reflectors[0][:n].triu()
    # Of a wide J the vᵢ follow the rounding: a root counts how many entries they have beyond m.
    widening = max(1.0, n / m) ** 0.5
    if graded:
        left, values, right = _jacobi(core)
        by_columns = norms(right * columns, 1)
        # Pivots keep rows and columns alike where J has full rank; where not, what is left of both
        # small rows and small columns may be rounding of larger ones.
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
    if not graded:  # below what rounds off the least row there is nothing more to learn
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
    # What J does not depend on stays as it is, bit for bit.
    right = torch.where(columns > 0, right, 0.0)
    return SingularValues(values, left, right, reflectors)


def norms(matrix: Tensor, dim: int) -> Tensor:
    """The 2-norms of a matrix along ``dim``, whatever the size of its entries."""
    found: Tensor = (
        matrix.square().sum(dim=dim).sqrt()
    )  # four times as fast as vector_norm over columns
    if bool((found > TINY).all() & torch.isfinite(found).all()):
        return found
    sizes = matrix.abs().amax(dim=dim, keepdim=True)
    sizes = torch.where((sizes > 0) & torch.isfinite(sizes), sizes, 1.0)
    found = torch.linalg.vector_norm(matrix / sizes, dim=dim) * sizes.squeeze(dim)
    return found


def _ratio(sizes: Tensor) -> float:
    """The largest over the smallest that is not 0; 1 where all are."""
    least = torch.where(sizes > 0, sizes, torch.inf).amin()
    return float(torch.clamp(sizes.amax() / least, min=1.0))


def _jacobi(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ and Vᵀ by LAPACK's dgejsv, which asks for no fewer rows than columns."""
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = _jacobi(matrix.mT)
        return left.mT, values, right.mT
    # joba=2: row and column pivoting; jobr=0: no small column counts as zero.
    values, left, right, work, _, info = lapack.dgejsv(
        matrix.cpu().numpy(), joba=2, jobu=0, jobv=0, jobr=0, jobt=1, jobp=1
    )
    if info:  # more than 30 sweeps, which is not known to happen
        left, found, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, found, right
    like = [torch.as_tensor(array, device=matrix.device) for array in (left, values, right)]
    return like[0], like[1] * (work[0] / work[1]), like[2].mT

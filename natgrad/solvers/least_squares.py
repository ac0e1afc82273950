"""Damped least squares by the singular values of J: one decomposition, nothing squared."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.solvers.problem import check_damping, check_tolerances, require
from natgrad.solvers.scaling import norm, power_of_two, unscale
from natgrad.solvers.secular import solve_secular
from natgrad.solvers.solution import Solution, Status

TALL = 1.5  # rows to columns


def least_squares(J: Tensor) -> LeastSquares:
    """Decompose J (m, n) once, for any right-hand side, damping and radius.

    Unlike :func:`sample_space` and solves with JᵀJ, which know singular values only by their
    squares, it resolves them down to eps times the largest. Raises ``ValueError`` where J is no
    matrix of float32 or float64, or empty.

    Cost: some 2 m n² + 6 n³ operations in float64 for m > n (with m and n exchanged for m < n), m n
    memory.

    >>> J = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> least_squares(J).solve(torch.tensor([2.0, 3.0, 1.0])).x.tolist()
    [1.0, 3.0]
    """
    return LeastSquares(J)


class LeastSquares:
    """What :func:`least_squares` returns; ``singular_values`` are J's, descending."""

    def __init__(self, J: Tensor) -> None:
        require(
            J.ndim == 2 and J.numel() > 0 and J.dtype in (torch.float32, torch.float64),
            f"expected a matrix (m, n) of float32 or float64, got {tuple(J.shape)} of {J.dtype}",
        )
        J = J.detach()
        self._J, self._scale = J, power_of_two(J).double()
        wide = (J / self._scale).double()
        self._finite = bool(torch.isfinite(wide).all())
        if not self._finite:
            wide = torch.zeros_like(wide)
        # A tall J by its triangle, whose reflectors are kept as they are: half the time.
        self._reflectors: tuple[Tensor, Tensor] | None = None
        if wide.shape[0] > TALL * wide.shape[1]:
            self._reflectors = torch.geqrf(wide)
            wide = self._reflectors[0][: wide.shape[1]].triu()
        self._U, values, self._Vh = torch.linalg.svd(wide, full_matrices=False)
        # What rounding alone explains is zero: its inverse would be noise.
        rounding = max(J.shape) * torch.finfo(J.dtype).eps * values.amax()
        self._values = torch.where(values > rounding, values, 0.0)
        self.singular_values = self._values * self._scale

    def solve(
        self, r: Tensor, *, damping: float = 0.0, radius: float = math.inf, rtol: float = 1e-5
    ) -> Solution[Tensor]:
        """x (n,), the solution of (JᵀJ + λ I) x = Jᵀr: λ is the ``damping``; with λ = 0 that of
        least ‖r − J x‖, and of least norm.

        With a ``radius``, λ grows by the ``multiplier`` that makes ‖x‖₂ = radius where x were
        longer (status BOUNDARY). ``Ax`` is JᵀJ x. CONVERGED says that the residual of the normal
        equations, of x as rounded to its dtype, is at most ``rtol`` ‖Jᵀr‖, STAGNATED that rounding
        left more: their condition is that of J squared, and x is better than they can tell.
        NONFINITE where J or r are, or x leaves the dtype's range. ``products`` counts none: J is
        known.

        Cost: some 8 m n operations.

        Raises ``ValueError`` for r of another shape or dtype, a damping that is negative or not
        finite, a radius that is not positive.
        """
        if r.shape != self._J.shape[:1] or r.dtype != self._J.dtype:
            raise ValueError(
                f"r must be ({self._J.shape[0]},) {self._J.dtype}, got {tuple(r.shape)} {r.dtype}"
            )
        check_damping(damping)
        require(radius > 0, f"radius must be positive, got {radius}")
        check_tolerances(rtol)
        r = r.detach()
        # In units of the scales: J = σ Ĵ, r = β r̂, x = (β / σ) x̂.
        r_scale = power_of_two(r).double()
        hat = (r / r_scale).double()
        usable = self._finite and bool(torch.isfinite(hat).all())
        c = self._project(hat)
        unit = r_scale / self._scale
        shift = damping / self._scale / self._scale
        squares = self._values.square()
        solvable = (squares + shift > 0) & usable
        projected = torch.where(solvable, self._values * c, 0.0)
        status, multiplier = Status.CONVERGED, torch.zeros_like(shift)
        denominator = torch.where(solvable, squares + shift, 1.0)
        if bool(norm(projected / denominator) * unit > radius):
            multiplier = solve_secular(squares + shift, projected, radius / unit).multiplier
            status, denominator = Status.BOUNDARY, denominator + multiplier
        y = projected / denominator
        if radius < math.inf:
            y = y * torch.clamp(
                radius / unit / norm(y), max=1.0
            )  # rounding may have put it outside
        answer, kept = unscale(self._Vh.mT @ y, r_scale, self._scale, self._J.dtype)
        # What is returned is what is judged, on J as it was given.
        x, J = answer.double() / unit, self._J.double()
        b, product = (J.mT @ v / self._scale for v in (hat, J @ x / self._scale))
        residual = norm(b - product - (shift + multiplier) * x)
        Ax = (product * (self._scale * r_scale)).to(self._J)
        if not usable or not bool(kept & torch.isfinite(Ax).all()):
            status, answer, Ax = Status.NONFINITE, torch.zeros_like(answer), torch.zeros_like(Ax)
        elif status is Status.CONVERGED:
            if not bool(norm(b) > 0):
                status = Status.ZERO_RHS
            elif not bool(residual <= rtol * norm(b)):
                status = Status.STAGNATED
        return Solution(
            answer, Ax, status, 0, 0, float(residual * self._scale * r_scale), None,
            float(multiplier * self._scale * self._scale),
        )  # fmt: skip

    def _project(self, r: Tensor) -> Tensor:
        """Uᵀr in the left singular vectors U of J."""
        if self._reflectors is not None:
            r = torch.ormqr(*self._reflectors, r.unsqueeze(1), transpose=True).squeeze(1)
        projected: Tensor = self._U.mT @ r[: len(self._U)]
        return projected

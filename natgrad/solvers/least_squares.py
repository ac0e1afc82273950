"""Damped least squares by the singular values of J: one decomposition, nothing squared."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.solvers.cg import cg
from natgrad.solvers.checks import as_samples, check_dense, check_region, check_tolerances, require
from natgrad.solvers.cholesky import cholesky
from natgrad.solvers.implicit import System, attach
from natgrad.solvers.scaling import as_float, length, power_of_two, quotient, rescale, unscale
from natgrad.solvers.secular import solve_secular
from natgrad.solvers.singular_values import singular_values
from natgrad.solvers.solution import Solution, Status
from natgrad.solvers.sphere import solve_in_tangent

SMALLEST = 2.0**-1000  # lower bound of the radius, in units of the solution without one


def least_squares(J: Tensor) -> LeastSquares:
    """Decompose J (m, n) once, to be solved with any right-hand side, damping and radius.

    Parameters
    ----------
    J
        Dense matrix (m, n), float32 or float64.

    Returns
    -------
    LeastSquares
        Call ``.solve(r, damping=..., radius=...)``.

    Raises
    ------
    ValueError, TypeError
        Where J is no matrix of float32 or float64, or empty; where it is sparse.

    Notes
    -----
    The ``x`` of a solve carries derivatives in r and J where J has full column rank or λ > 0: those
    of the normal equations, by one more solve (:mod:`natgrad.solvers.implicit`).

    Unlike :func:`sample_space` and solves with JᵀJ, which know singular values only by their
    squares, it resolves them down to the rounding of J: eps times the largest where columns and
    rows are of one size, far less where they are not, up to min(m, n) = 512.

    Cost: some 2 m n² + 6 n³ operations in float64 for m > n (with m and n exchanged for m < n), m n
    memory; ten times as many where norms of columns, or of rows, differ by 10¹⁰ and more.

    Examples
    --------
    >>> J = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> least_squares(J).solve(torch.tensor([2.0, 3.0, 1.0])).x.tolist()
    [1.0, 3.0]
    """
    return LeastSquares(J)


class LeastSquares:
    """The decomposition of :func:`least_squares`.

    Parameters
    ----------
    J
        Dense matrix (m, n), float32 or float64.

    Attributes
    ----------
    singular_values
        Those of J, descending, float64; 0 below the rounding of J.
    """

    def __init__(self, J: Tensor) -> None:
        check_dense(J, "J")
        require(
            J.ndim == 2 and J.numel() > 0 and J.dtype in (torch.float32, torch.float64),
            f"expected a matrix (m, n) of float32 or float64, got {tuple(J.shape)} of {J.dtype}",
        )
        self._given, J = J, J.detach()
        self._J, self._scale = J, power_of_two(J).double()
        wide = J.double() / self._scale
        self._finite = bool(torch.isfinite(wide).all())
        if not self._finite:
            wide = torch.zeros_like(wide)
        self._parts = singular_values(wide, torch.finfo(J.dtype).eps)
        self.singular_values = self._parts.values * self._scale

    def solve(
        self, r: Tensor, *, damping: float = 0.0, radius: float = math.inf, rtol: float = 1e-5
    ) -> Solution[Tensor]:
        """Solve (JᵀJ + λ I) x = Jᵀr, within a radius: minimise ½ ‖r − J x‖² + ½ λ ‖x‖².

        Parameters
        ----------
        r
            Right-hand side (m,), in J's dtype.
        damping
            λ >= 0, in units of J²; with 0, x is the least-squares solution of least norm.
        radius
            Bound on ‖x‖₂, > 0. Where x would be longer, λ grows by the ``multiplier`` that makes
            ‖x‖₂ = radius.
        rtol
            Relative residual of the normal equations for CONVERGED.

        Returns
        -------
        Solution
            ``Ax`` is JᵀJ x; ``products`` is 0: J is known. With the status

            - CONVERGED, the residual of the normal equations, of x as rounded to its dtype, is at
              most ``rtol`` ‖Jᵀr‖;
            - STAGNATED, rounding left more: their condition is that of J squared, and x is better
              than they can tell;
            - BOUNDARY, ‖x‖₂ = radius;
            - NONFINITE, J or r are not finite, or x leaves the dtype's range: x = 0.

        Raises
        ------
        ValueError
            For r of another shape or dtype, a damping that is negative or not finite, a radius
            that is not positive.

        Notes
        -----
        Cost: some 8 m n operations.
        """
        check_region(damping, radius)
        check_tolerances(rtol)
        given, r = r, as_samples(r, len(self._J), self._J)
        # In units of the scales: J = σ Ĵ, r = β r̂, x = (β / σ) x̂.
        r_scale = power_of_two(r).double()
        hat = r.double() / r_scale
        usable = self._finite and bool(torch.isfinite(hat).all())
        c = self._parts.project(hat)
        sigma = self._parts.values
        shift = damping / self._scale / self._scale
        solvable = (sigma > 0) & usable
        # σ c / (σ² + λ) without squares: those of small columns leave the range.
        root = torch.where(solvable, sigma, 1.0)
        y = torch.where(solvable, c / (root + shift / root), 0.0)
        status, multiplier = Status.CONVERGED, torch.zeros_like(shift)
        numerator, denominator = r_scale, self._scale
        bound = as_float(*quotient((radius, float(self._scale)), (float(r_scale),)))
        bound = max(bound, SMALLEST)
        if bool(length(y) > bound):
            squares, projected = sigma.square() + shift, torch.where(solvable, sigma * c, 0.0)
            multiplier = solve_secular(squares, projected, shift.new_tensor(bound)).multiplier
            status = Status.BOUNDARY
            y = torch.where(solvable, c / (root + (shift + multiplier) / root), 0.0)
            # In units of the radius, which in the scaled units may be out of range.
            y = y / length(y)
            numerator, denominator = shift.new_tensor(radius), torch.ones_like(shift)
        answer, kept = unscale(self._parts.right.mT @ y, numerator, denominator, self._J.dtype)
        # The residual is that of x as returned, after rounding, with J as given.
        x, _ = rescale(answer.double(), (self._scale,), (r_scale,))
        J = self._J.double()
        b, product = (J.mT @ v / self._scale for v in (hat, J @ x / self._scale))
        residual = length(b - product - (shift + multiplier) * x)
        Ax, _ = rescale(product, (self._scale, r_scale), (), self._J.dtype)
        if not usable or not bool(kept & torch.isfinite(Ax).all() & torch.isfinite(residual)):
            status, answer, Ax = Status.NONFINITE, torch.zeros_like(answer), torch.zeros_like(Ax)
        elif not bool(b.any()):  # then c is the rounding of the singular vectors
            status, answer, Ax = Status.ZERO_RHS, torch.zeros_like(answer), torch.zeros_like(Ax)
            residual = multiplier = torch.zeros_like(residual)
        elif status is Status.CONVERGED and not bool(residual <= rtol * length(b)):
            status = Status.STAGNATED
        multiplier = multiplier * self._scale * self._scale
        residual_norm = float(residual * self._scale * r_scale)
        found = Solution(answer, Ax, status, 0, 0, residual_norm, None, float(multiplier))
        return self._differentiable(found, given, damping, rtol)

    def _differentiable(
        self, solution: Solution[Tensor], r: Tensor, damping: float, rtol: float
    ) -> Solution[Tensor]:
        """x as the solution of (JᵀJ + (λ + μ) I) x = Jᵀr, whose derivatives are solves with JᵀJ."""
        J = self._given
        if not torch.is_grad_enabled() or not (r.requires_grad or J.requires_grad):
            return solution

        def product(v: Tensor) -> Tensor:
            image: Tensor = J.mT @ (J @ v)
            return image

        def again(rhs: Tensor, x: Tensor) -> Solution[Tensor]:
            if on_radius:
                return solve_in_tangent(product, J.mT @ r, x, rhs, rtol=rtol, max_iterations=None)
            if J.shape[0] < J.shape[1]:  # n² memory for the matrix itself
                return cg(product, rhs, damping=damping, rtol=rtol)
            return cholesky(J.mT @ J, rhs, damping=damping, rtol=rtol)

        on_radius = solution.status is Status.BOUNDARY
        singular = not (damping or on_radius) and (
            J.shape[0] < J.shape[1] or not bool(self._parts.values.all())
        )
        why_not = "J has not full column rank, and damping is 0" if singular else ""
        system = System(product, again, why_not, on_radius)
        return attach(solution, system, J.mT @ r, curved=J.requires_grad)

"""A Krylov basis that answers for every damping and every radius: Lanczos, and GLTR upon it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import Problem, as_kind, as_limit, check_tolerances, pose, require
from natgrad.solvers.scaling import norm, power_of_two, unscale
from natgrad.solvers.secular import solve_secular
from natgrad.solvers.solution import Solution, Status, V

DEFAULT_LIMIT = 500


def lanczos(
    A: LinearMap,
    b: V,
    *,
    rtol: float = 1e-5,
    max_iterations: int | None = None,
    search: int | None = None,
    generator: torch.Generator | None = None,
) -> Krylov[V]:
    """The Krylov space of symmetric A and b, for ``.solve(damping=..., radius=...)`` of any kind.

    ``rtol`` is the relative residual that a solve must reach. ``max_iterations`` bounds the size of
    the basis (default: n, at most 500). ``search`` bounds the products spent, for a radius, on
    curvature that b does not excite (the hard case): None for as many as ``max_iterations``
    leaves, 0 for none, which is plain GLTR; right where A is known to be positive semidefinite. Its
    starting vector comes from ``generator``, by default one of its own with a fixed seed.

    Takes no product by itself. Raises as :func:`cg` does.

    Cost: one product for each vector of the basis. Memory: two vectors for each (the product is
    kept: A x is known for every x). Full reorthogonalisation: 8 n k operations for the k-th.

    Source: Gould, Lucidi, Roma & Toint, "Solving the trust-region subproblem using the Lanczos
    method", 1999. How it differs: the basis stays orthogonal to rounding, so that no ghost
    eigenvalues arise; the residual is that of the kept products, not of the recurrence; the hard
    case is met by a second, random starting vector, whose Krylov space joins the first.

    >>> krylov = lanczos(torch.diag(torch.tensor([1.0, -1.0])), torch.tensor([1.0, 1.0]))
    >>> [(s.status.name, s.products) for s in (krylov.solve(radius=r) for r in (1.0, 0.1, 5.0))]
    [('BOUNDARY', 2), ('BOUNDARY', 0), ('BOUNDARY', 0)]
    """
    problem = pose(A, b)
    size = len(problem.rhs)
    check_tolerances(rtol)
    limit = min(as_limit(max_iterations, size), size)
    if max_iterations is None:
        limit = min(limit, DEFAULT_LIMIT)
    require(search is None or search >= 0, f"search must be >= 0 or None, got {search}")
    if generator is None:
        generator = torch.Generator(problem.rhs.device).manual_seed(0)
    return Krylov(problem, rtol, limit, limit if search is None else search, generator)


class Krylov(Generic[V]):
    """What :func:`lanczos` returns. It grows only where a solve asks for more than it holds."""

    def __init__(
        self,
        problem: Problem[V],
        rtol: float,
        limit: int,
        search: int,
        generator: torch.Generator,
    ) -> None:
        self._multiply, self._in_numpy = problem.multiply, problem.in_numpy
        self._rtol, self._limit, self._search = rtol, limit, search
        self._generator = generator
        b = problem.rhs
        self._b_scale, self._A_scale = power_of_two(b), power_of_two(b.new_zeros(1))
        self._b = b / self._b_scale
        self._finite = bool(torch.isfinite(b).all())
        # Rows of an orthonormal basis Q (k, n), their products, and H = Q A Qᵀ in float64.
        self._basis: list[Tensor] = []
        self._images: list[Tensor] = []
        self._projected = b.new_zeros(0, 0, dtype=torch.float64)
        self._searched = 0

    @property
    def size(self) -> int:
        """The number of vectors in the basis, and of products taken so far."""
        return len(self._basis)

    def solve(self, *, damping: float = 0.0, radius: float = math.inf) -> Solution[V]:
        """The minimiser x of ½ xᵀ(A + λ I) x − bᵀx over ‖x‖₂ <= radius, λ the damping.

        For a model gᵀs + ½ sᵀA s give b = −g. Without a radius this solves (A + λ I) x = b. With

        - CONVERGED, ‖x‖ < radius and the residual r = b − (A + λ I) x passed ‖r‖ <= rtol ‖b‖;
        - BOUNDARY, ‖x‖ = radius and r = b − (A + (λ + μ) I) x passed ‖r‖ <= rtol (‖b‖ + ‖A‖ ‖x‖),
          μ the ``multiplier``: the global minimiser, as far as the search for curvature saw;
        - NEGATIVE_CURVATURE, there is no radius but curvature is not positive along ``direction``:
          x is the solution in the rest of the Krylov space;
        - MAX_ITERATIONS, STAGNATED (rounding allows no more), NONFINITE: the best of the basis.

        ``Ax`` is A x without damping and multiplier. ``products`` and ``iterations`` count what
        this call took. Raises ``ValueError`` for a damping that is negative or not finite and a
        radius that is not positive.
        """
        require(
            math.isfinite(damping) and damping >= 0,
            f"damping must be finite and >= 0, got {damping}",
        )
        require(radius > 0, f"radius must be positive, got {radius}")
        before = self.size
        for _ in range(self._limit + 1 - before):
            best = self._best(damping, radius)
            status = best.status
            if status is None:
                towards = self._towards(best)
                if self.size >= self._limit:
                    status = best.at_limit
                elif towards is None or not self._grow(towards):
                    status = best.when_stuck if self._finite else Status.NONFINITE
            if status is not None:
                break
        return self._solution(best, status or best.at_limit, self.size - before)

    def _best(self, damping: float, radius: float) -> _Best:
        """The best answer that the basis holds."""
        if not self._finite or not self.size:
            return self._start(radius)
        A_scale = self._A_scale.double()
        shift = damping / A_scale
        eigenvalues, vectors = torch.linalg.eigh(self._projected)
        shifted, lowest = eigenvalues + shift, vectors[:, 0]
        basis, images = torch.stack(self._basis), torch.stack(self._images)
        c = vectors.mT @ (basis @ self._b).double()
        eps = torch.finfo(self._b.dtype).eps
        A_norm = eigenvalues.abs().amax()
        mu, on_boundary, direction = torch.zeros_like(shift), False, None
        if radius < math.inf:
            bound = radius * (A_scale / self._b_scale.double())
            y, mu, on_boundary = solve_secular(shifted, c, bound)
        else:
            positive = shifted > eps * shifted.abs().amax()
            y = torch.where(positive, c / shifted, 0.0)
            direction = None if bool(positive[0]) else lowest.to(self._b) @ basis
        y = (vectors @ y).to(self._b)
        x, Ax = y @ basis, y @ images
        residual = self._b - Ax - ((shift + mu) * x).to(x)
        reference = norm(self._b) + (A_norm * norm(x) if on_boundary else 0.0)
        margin = eps * (math.sqrt(self.size) * A_norm * norm(y) + norm(self._b))
        passed = bool(norm(residual) <= self._rtol * reference - margin)

        status: Status | None = None
        pair = None
        if direction is not None:
            status = Status.NEGATIVE_CURVATURE
        elif passed:
            status = Status.BOUNDARY if on_boundary else Status.CONVERGED
            if radius < math.inf and self._searched < self._search and self.size < len(self._b):
                # Curvature below −μ may hide outside the basis, unless the lowest Ritz pair is
                # accurate enough to say that it does not.
                v = lowest.to(self._b)
                pair = v @ images - (eigenvalues[0] * (v @ basis)).to(v)
                room = torch.maximum(0.1 * (shifted[0] + mu), self._rtol * A_norm)
                if self._searched and bool(norm(pair) <= room):
                    pair = None
        return _Best(x, Ax, residual, status, pair, mu * A_scale, direction)

    def _start(self, radius: float) -> _Best:
        zero = torch.zeros_like(self._b)
        nothing = zero.new_zeros((), dtype=torch.float64)
        if not self._finite:
            return _Best(zero, zero, self._b, Status.NONFINITE, None, nothing, None)
        if bool(self._b.any()):
            return _Best(zero, zero, self._b, None, None, nothing, None)
        pair = zero if radius < math.inf and self._search else None
        return _Best(zero, zero, zero, Status.ZERO_RHS, pair, nothing, None)

    def _towards(self, best: _Best) -> Tensor | None:
        """Where the basis should grow: the residual, or in a search the lowest Ritz pair's."""
        if best.pair is None:
            return best.residual
        self._searched += 1
        if self._searched > 1:
            return best.pair
        sample = torch.randn(
            len(self._b), generator=self._generator, dtype=torch.float64, device=self._b.device
        )
        return sample.to(self._b)

    def _grow(self, vector: Tensor) -> bool:
        """Add the part of the vector outside the basis; False where rounding leaves none."""
        q = vector / power_of_two(vector)
        q = q / norm(q).to(q)
        if self._basis:
            basis = torch.stack(self._basis)
            for _ in range(2):  # twice is enough (Kahan): orthogonal to rounding
                q = q - (basis @ q) @ basis
                length = norm(q)
                if not bool(length > 100 * torch.finfo(q.dtype).eps):
                    return False
                q = q / length.to(q)
        image = self._multiply(q)
        if not self.size:
            self._A_scale = power_of_two(image) / power_of_two(q)
        image = image / self._A_scale
        self._finite = bool(torch.isfinite(image).all())
        if not self._finite:
            return False
        self._basis.append(q)
        self._images.append(image)
        column = (torch.stack(self._basis).double() @ image.double()).unsqueeze(1)
        row = column[:-1].mT
        self._projected = torch.cat(
            [torch.cat([self._projected, column[:-1]], dim=1), torch.cat([row, column[-1:]], dim=1)]
        )
        return True

    def _solution(self, best: _Best, status: Status, products: int) -> Solution[V]:
        x, kept = unscale(best.x, self._b_scale, self._A_scale)
        Ax = best.Ax * self._b_scale
        residual_norm = float(norm(best.residual) * self._b_scale.double())
        if not (bool(kept) and math.isfinite(residual_norm)):
            status = Status.NONFINITE
        solution = Solution(
            x, Ax, status, products, products, residual_norm, best.direction, float(best.multiplier)
        )
        return as_kind(solution, in_numpy=self._in_numpy)


@dataclass(frozen=True)
class _Best:
    """An answer in scaled units; ``multiplier`` is in the caller's.

    ``passed_as`` is None where the residual has not passed. ``pair`` is the residual of the lowest
    Ritz pair where it has, but curvature is still to be searched for.
    """

    x: Tensor
    Ax: Tensor
    residual: Tensor
    passed_as: Status | None
    pair: Tensor | None
    multiplier: Tensor
    direction: Tensor | None

    @property
    def status(self) -> Status | None:
        return None if self.pair is not None else self.passed_as

    @property
    def at_limit(self) -> Status:
        return self.passed_as or Status.MAX_ITERATIONS

    @property
    def when_stuck(self) -> Status:
        return self.passed_as or Status.STAGNATED

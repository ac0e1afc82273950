"""A Krylov basis that answers for every damping and every radius: Lanczos, and GLTR upon it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import (
    Problem,
    as_count,
    as_kind,
    as_limit,
    check_damping,
    check_tolerances,
    pose,
    require,
)
from natgrad.solvers.scaling import as_float, length, norm, power_of_two, quotient, unscale
from natgrad.solvers.secular import solve_secular
from natgrad.solvers.solution import Solution, Status, V

DEFAULT_LIMIT = 500
# The chance with which a search for curvature may end too early.
FAILURE = 1e-3
# Of the random start: one that no caller's b is likely to be drawn with, or the two are parallel.
SEED = 0x9E3779B97F4A7C15


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
    leaves, 0 for none, which is plain GLTR; right where A is known to be positive semidefinite. A
    search takes some 8 √(‖A‖ / (λ_min + λ + μ)) products, fewer where it finds curvature sooner; it
    is not repeated for a smaller radius. Its starting vector comes from ``generator``, by default
    one of its own with a fixed seed.

    Takes no product by itself. Raises as :func:`cg` does.

    Cost: one product for each vector of the basis. Memory: two vectors for each (the product is
    kept: A x is known for every x). Full reorthogonalisation: 8 n k operations for the k-th.

    Source: Gould, Lucidi, Roma & Toint, "Solving the trust-region subproblem using the Lanczos
    method", 1999. How it differs: the basis stays orthogonal to rounding, so that no ghost
    eigenvalues arise; the residual is that of the kept products, not of the recurrence; the hard
    case is met by a second, random starting vector, whose Krylov space joins the first. How long to
    follow it: Kuczyński & Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start", 1992, theorem 4.2.

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
    search = search if search is None else as_count(search, "search")
    if generator is None:
        generator = torch.Generator(problem.rhs.device).manual_seed(SEED)
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
        self._products = self._searched = 0
        self._random_at: int | None = None  # the place of the random vector in the basis

    @property
    def size(self) -> int:
        """The number of vectors in the basis."""
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
        check_damping(damping)
        require(radius > 0, f"radius must be positive, got {radius}")
        before = self._products
        while True:  # ends at the latest when the basis has reached its limit
            best = self._best(damping, radius)
            status = best.status
            if status is None and self.size >= self._limit:
                status = best.passed_as or Status.MAX_ITERATIONS
            if status is None:
                status = self._grow(best)
            if status is not None:
                return self._solution(best, status, self._products - before)

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
        bound = shift.new_tensor(
            as_float(*quotient((radius, float(A_scale)), (float(self._b_scale),)))
        )
        if radius < math.inf:
            y, mu, on_boundary = solve_secular(shifted, c, bound)
        else:
            positive = shifted > eps * shifted.abs().amax()
            y = torch.where(positive, c / shifted, 0.0)
            direction = None if bool(positive[0]) else lowest.to(self._b) @ basis
        # In float64 from here: a radius may take x beyond the dtype where A and b have unit size.
        y = vectors @ y
        size = torch.where((y != 0).any(), y.abs().amax(), 1.0)
        unit = (y / size).to(self._b)
        x, Ax = size * (unit @ basis).double(), size * (unit @ images).double()
        if radius < math.inf:
            fit = torch.clamp(1 / norm(x / bound), max=1.0)  # rounding may have put x outside
            x, Ax = fit * x, fit * Ax
        residual = self._b - Ax - (shift + mu) * x
        reference = norm(self._b) + (A_norm * length(x) if on_boundary else 0.0)
        margin = eps * (math.sqrt(self.size) * A_norm * length(y) + norm(self._b))
        tolerance = self._rtol * reference if self._rtol < math.inf else self._rtol
        passed = bool(norm(residual) <= tolerance - margin)

        status: Status | None = None
        unseen = None
        if direction is not None:
            status = Status.NEGATIVE_CURVATURE
        elif passed:
            inside = Status.CONVERGED if bool(self._b.any()) else Status.ZERO_RHS
            status = Status.BOUNDARY if on_boundary else inside
            if radius < math.inf and self._searched < self._search and self.size < self._limit:
                unseen = self._unseen(shift + mu, A_norm, basis, images)
        return _Best(x, Ax, residual, status, unseen, mu * A_scale, direction)

    def _unseen(
        self, shift: Tensor, A_norm: Tensor, basis: Tensor, images: Tensor
    ) -> Tensor | None:
        """Where to look for curvature below −``shift`` that b does not excite; None if there is
        none, but for a chance of FAILURE at most.

        Only vectors that grew from a random start can tell: the lowest Ritz pair of the whole basis
        may be accurate and belong to what b excites. Their own lowest pair (θ, v) tells once it is
        accurate, or by their number k: that Lanczos from a random start leaves an eigenvalue below
        θ − ε (λ_max − λ_min) unseen has a chance of 1.648 √n exp(−√ε (2k − 1)) at most.
        """
        if self._random_at is None:
            return self._sample()
        own = self._projected[self._random_at :, self._random_at :]
        eigenvalues, vectors = torch.linalg.eigh(own)
        v = vectors[:, 0].to(basis)
        image = v @ images[self._random_at :]
        outside = image - (basis @ image) @ basis
        if bool(norm(outside) <= self._rtol * A_norm):
            return None
        epsilon = torch.clamp(eigenvalues[0] + shift, min=0.0) / (2 * A_norm)
        exponent = torch.sqrt(epsilon) * (2 * len(own) - 1)
        known = 1.648 * math.sqrt(len(self._b)) * torch.exp(-exponent) <= FAILURE
        return None if bool(known) else outside

    def _sample(self) -> Tensor:
        return torch.randn(
            len(self._b), generator=self._generator, dtype=torch.float64, device=self._b.device
        ).to(self._b)

    def _start(self, radius: float) -> _Best:
        zero = torch.zeros_like(self._b)
        nothing = zero.new_zeros((), dtype=torch.float64)
        if not self._finite:
            return _Best(zero, zero, self._b, Status.NONFINITE, None, nothing, None)
        if bool(self._b.any()):
            return _Best(zero, zero, self._b, None, None, nothing, None)
        unseen = self._sample() if radius < math.inf and self._search else None
        return _Best(zero, zero, zero, Status.ZERO_RHS, unseen, nothing, None)

    def _grow(self, best: _Best) -> Status | None:
        """Add a vector to the basis; the status to end with where there is none to add."""
        searching = best.unseen is not None
        vector = best.unseen if best.unseen is not None else best.residual.to(self._b)
        q = vector / power_of_two(vector)
        q = q / norm(q)
        if self._basis:
            basis = torch.stack(self._basis)
            for _ in range(2):  # twice is enough (Kahan): orthogonal to rounding
                q = q - (basis @ q) @ basis
                length = norm(q)
                if not bool(length > 100 * torch.finfo(q.dtype).eps):
                    return best.passed_as or Status.STAGNATED
                q = q / length
        image = self._multiply(q)
        self._products += 1
        if not self.size:
            self._A_scale = power_of_two(image) / power_of_two(q)
        image = image / self._A_scale
        if not bool(torch.isfinite(image).all()):
            return Status.NONFINITE
        if searching:
            self._searched += 1
            self._random_at = self.size if self._random_at is None else self._random_at
        self._basis.append(q)
        self._images.append(image)
        column = (torch.stack(self._basis).double() @ image.double()).unsqueeze(1)
        row = column[:-1].mT
        self._projected = torch.cat(
            [torch.cat([self._projected, column[:-1]], dim=1), torch.cat([row, column[-1:]], dim=1)]
        )
        return None

    def _solution(self, best: _Best, status: Status, products: int) -> Solution[V]:
        x, kept = unscale(best.x, self._b_scale, self._A_scale, self._b.dtype)
        Ax = (best.Ax * self._b_scale.double()).to(x)
        residual_norm = float(norm(best.residual) * self._b_scale.double())
        if not (bool(kept & torch.isfinite(Ax).all()) and math.isfinite(residual_norm)):
            status = Status.NONFINITE
        solution = Solution(
            x, Ax, status, products, products, residual_norm, best.direction, float(best.multiplier)
        )
        return as_kind(solution, in_numpy=self._in_numpy)


@dataclass(frozen=True)
class _Best:
    """An answer in scaled units; ``multiplier`` is in the caller's.

    ``passed_as`` is None where the residual has not passed. ``unseen`` is where the basis should
    grow where it has, but curvature is still to be searched for.
    """

    x: Tensor
    Ax: Tensor
    residual: Tensor
    passed_as: Status | None
    unseen: Tensor | None
    multiplier: Tensor
    direction: Tensor | None

    @property
    def status(self) -> Status | None:
        return None if self.unseen is not None else self.passed_as

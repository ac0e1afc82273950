"""A Krylov basis with its products, and solves in it for any damping and radius."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from natgrad.solvers.checks import check_region
from natgrad.solvers.problem import Problem, as_kind
from natgrad.solvers.scaled import Scaled
from natgrad.solvers.scaling import as_float, length, norm, power_of_two, quotient
from natgrad.solvers.secular import solve_secular
from natgrad.solvers.solution import Solution, Status, V
from natgrad.solvers.sphere import solve_in_tangent

# The accepted probability that a search for curvature ends too early.
FAILURE = 1e-3


class Krylov(Generic[V]):
    """The basis that :func:`lanczos` makes; it grows only where a solve needs a larger one.

    Parameters
    ----------
    problem
        A and b, checked.
    rtol, limit, search, generator
        As in :func:`lanczos`; ``limit`` bounds the size of the basis.
    again
        Solves (A + λ I) x = b for another b and a λ, for derivatives.
    """

    def __init__(
        self,
        problem: Problem[V],
        rtol: float,
        limit: int,
        search: int,
        generator: torch.Generator,
        again: Callable[[Tensor, float], Solution[Tensor]],
    ) -> None:
        self._problem: Problem[V] = problem
        self._again = again
        self._multiply, self._in_numpy = problem.multiply, problem.in_numpy
        self._rtol, self._limit, self._search = rtol, limit, search
        self._generator = generator
        self._scaled = Scaled.of(problem.rhs, rtol)
        self._b, self._A_scale = self._scaled.rhs, torch.ones_like(self._scaled.unit)
        self._finite = bool(torch.isfinite(self._b).all())
        # Rows of an orthonormal basis Q (k, n), their products, and H = Q A Qᵀ in float64.
        self._basis: list[Tensor] = []
        self._images: list[Tensor] = []
        self._projected = self._scaled.norm.new_zeros(0, 0)
        self._products = self._searched = 0
        self._random_at: int | None = None  # the place of the random vector in the basis

    @property
    def size(self) -> int:
        """The number of vectors in the basis."""
        return len(self._basis)

    def solve(self, *, damping: float = 0.0, radius: float = math.inf) -> Solution[V]:
        """The minimiser x of ½ xᵀ(A + λ I) x − bᵀx over ‖x‖₂ <= radius, λ the damping.

        Parameters
        ----------
        damping
            λ >= 0, in A's units.
        radius
            Bound on ‖x‖₂, > 0; infinite to solve (A + λ I) x = b.

        Returns
        -------
        Solution
            ``Ax`` is A x without damping and multiplier; ``products`` and ``iterations`` count
            those of this call. With the status

            - CONVERGED, ‖x‖ < radius and the residual r = b − (A + λ I) x passed ‖r‖ <= rtol ‖b‖;
            - BOUNDARY, ‖x‖ = radius and r = b − (A + (λ + μ) I) x passed ‖r‖ <= rtol (‖b‖ +
              ‖A‖ ‖x‖), μ the ``multiplier``: the global minimiser, unless the search for curvature
              missed some;
            - NEGATIVE_CURVATURE, there is no radius but curvature is not positive along
              ``direction``: x is the solution in the rest of the Krylov space;
            - MAX_ITERATIONS, STAGNATED (rounding allows no more), NONFINITE: the best of the basis.

        Raises
        ------
        ValueError
            For a damping that is negative or not finite, and a radius that is not positive.
        """
        check_region(damping, radius)
        before = self._products
        while True:  # ends at the latest when the basis has reached its limit
            best = self._best(damping, radius)
            status = best.status
            if status is None and self.size >= self._limit:
                status = best.passed_as or Status.MAX_ITERATIONS
            if status is None:
                status = self._grow(best)
            if status is not None:
                solution = self._solution(best, status, self._products - before)
                return self._differentiable(solution, damping)

    def _differentiable(self, solution: Solution[V], damping: float) -> Solution[V]:
        problem = self._problem

        def on_radius(cotangent: Tensor, x: Tensor) -> Solution[Tensor]:
            assert problem.given is not None
            A = problem.multiply.with_graph
            rtol, limit = self._rtol, self._limit
            return solve_in_tangent(A, problem.given, x, cotangent, rtol=rtol, max_iterations=limit)

        return problem.differentiable(solution, lambda rhs: self._again(rhs, damping), on_radius)

    def _best(self, damping: float, radius: float) -> _Best:
        """The minimiser in the basis."""
        if not self._finite or not self.size:
            return self._start(radius)
        A_scale = self._A_scale.double()
        shift = damping / A_scale
        eigenvalues, vectors = torch.linalg.eigh(self._projected)
        shifted, lowest = eigenvalues + shift, vectors[:, 0]
        basis, images = torch.stack(self._basis), torch.stack(self._images)
        c = vectors.mT @ (basis @ self._b).double()
        eps = self._scaled.eps
        A_norm = eigenvalues.abs().amax()
        mu, on_boundary, direction = torch.zeros_like(shift), False, None
        bound = shift.new_tensor(
            as_float(*quotient((radius, float(A_scale)), (float(self._scaled.unit),)))
        )
        if radius < math.inf:
            y, mu, on_boundary = solve_secular(shifted, c, bound)
        else:
            positive = shifted > eps * shifted.abs().amax()
            y = torch.where(positive, c / shifted, 0.0)
            direction = None if bool(positive[0]) else lowest.to(self._b) @ basis
        # float64: where A and b have unit size, a radius may take x beyond b's dtype.
        y = vectors @ y
        size = torch.where((y != 0).any(), y.abs().amax(), 1.0)
        unit = (y / size).to(self._b)
        x, Ax = size * (unit @ basis).double(), size * (unit @ images).double()
        if radius < math.inf:
            fit = torch.clamp(1 / norm(x / bound), max=1.0)  # rounding may have put x outside
            x, Ax = fit * x, fit * Ax
        residual = self._b - Ax - (shift + mu) * x
        reference = self._scaled.norm + (A_norm * length(x) if on_boundary else 0.0)
        margin = eps * (math.sqrt(self.size) * A_norm * length(y) + self._scaled.norm)
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
        return _Best(x, Ax, residual, status, unseen, mu, direction)

    def _unseen(
        self, shift: Tensor, A_norm: Tensor, basis: Tensor, images: Tensor
    ) -> Tensor | None:
        """The next vector of the search for curvature below −``shift`` that b does not excite; None
        where there is none, with a probability of FAILURE at most to be wrong.

        Only the vectors that grew from a random start can decide: the lowest Ritz pair of the whole
        basis may be accurate and belong to eigenvectors that b excites. Their own lowest pair
        (θ, v) decides once it is accurate, or by their number k: the probability that Lanczos from
        a random start misses an eigenvalue below θ − ε (λ_max − λ_min) is at most
        1.648 √n exp(−√ε (2k − 1)).
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
        sample = self._scaled.norm.new_empty(len(self._b)).normal_(generator=self._generator)
        return sample.to(self._b)

    def _start(self, radius: float) -> _Best:
        zero = torch.zeros_like(self._b)
        nothing = torch.zeros_like(self._scaled.norm)
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
            for _ in range(2):  # twice makes it orthogonal to rounding (Kahan)
                q = q - (basis @ q) @ basis
                length = norm(q)
                if not bool(length > 100 * self._scaled.eps):
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
        multiplier, residual_norm = float(best.multiplier), float(norm(best.residual))
        account = products, products, residual_norm
        found = Solution(best.x, best.Ax, status, *account, best.direction, multiplier)
        return as_kind(self._scaled.answer(found, self._A_scale), in_numpy=self._in_numpy)


@dataclass(frozen=True)
class _Best:
    """The minimiser in the basis, in scaled units.

    ``passed_as`` is the status where the residual has passed, else None. ``unseen`` is the vector
    to grow by where it has passed, but the search for curvature goes on.
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

"""Steihaug-Toint conjugate gradients: a quadratic model inside a trust region."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Generic

import torch
from torch import Tensor

from natgrad.solvers.cg import cg
from natgrad.solvers.checks import as_limit, check_tolerances, require
from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import Problem, as_kind, pose
from natgrad.solvers.scaled import Scaled
from natgrad.solvers.scaling import as_float, norm, quotient
from natgrad.solvers.solution import Solution, V
from natgrad.solvers.steihaug_recurrence import EndPoint, Recurrence, Segment

LIMIT = 500  # the radius, in a model of unit size, is clamped to 2^±500


def steihaug(
    A: LinearMap,
    g: V,
    radius: float,
    *,
    preconditioner: LinearMap | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iterations: int | None = None,
) -> Solution[V]:
    """Minimise the model gᵀs + ½ sᵀA s over ‖s‖_P <= radius, approximately, for symmetric A.

    Follows conjugate gradients from 0 until the model's gradient g + A s is small, or the path
    meets the boundary, or curvature along it is not positive; then it goes on to the boundary.

    Parameters
    ----------
    A
        Symmetric (n, n), an operator, matrix or function, as in :func:`cg`.
    g
        The model's gradient at 0, torch or NumPy (n,), float32 or float64.
    radius
        Bound on ‖s‖_P, positive and finite, in units of s.
    preconditioner
        P⁻¹, symmetric positive definite; P is the identity where None. Its scale matters: P
        measures the radius.
    rtol, atol
        The gradient counts as small where ‖g + A s‖₂ <= max(rtol ‖g‖₂, atol).
    max_iterations
        Bound on the iterations; 10 n where None.

    Returns
    -------
    Solution
        The model's decrease is −(g @ s + s @ As / 2), at no further product. With the status

        - CONVERGED, s lies inside, and the *true* gradient A s + g passed, verified by a product;
        - BOUNDARY and NEGATIVE_CURVATURE, ‖s‖_P = radius (the latter with ``direction``, and inside
          without one where the preconditioner is not positive);
        - MAX_ITERATIONS, STAGNATED, NONFINITE, s is the last sound iterate, inside.

    Raises
    ------
    ValueError, TypeError
        For a radius that is not positive and finite, and as :func:`cg` does.

    Notes
    -----
    Inside the radius ``x`` carries derivatives in g and A, at one more solve each:
    :mod:`natgrad.solvers.implicit`. On it s is a point of a path and has none.

    ‖s‖ grows along the path, and the model falls at least as far as at the Cauchy point. To try
    smaller radii after a rejection at no product, keep a :class:`SteihaugPath`. For indefinite A,
    :func:`lanczos` finds the minimiser itself.

    Cost: one product an iteration, one to verify convergence; memory of nine vectors, two more with
    a preconditioner.

    Source: Steihaug 1983; Conn, Gould & Toint, *Trust-Region Methods*, 2000, algorithm 7.5.1.
    Differences: scaled by powers of two as :func:`cg` is; the norms are those of the vectors, P s
    carried beside s, in float64, not of the recurrences, which drift; the root for the boundary is
    taken in the form without cancellation; without a preconditioner, a step that rounding put
    outside is scaled back.

    Examples
    --------
    >>> s = steihaug(torch.diag(torch.tensor([1.0, -1.0])), torch.tensor([1.0, 1.0]), 2.0)
    >>> s.status.name, round(float(s.x.norm()), 6)
    ('NEGATIVE_CURVATURE', 2.0)
    """
    path = SteihaugPath(
        A, g, preconditioner=preconditioner, rtol=rtol, atol=atol, max_iterations=max_iterations
    )
    return path._differentiable(path._follow(radius, path._segments))


class SteihaugPath(Generic[V]):
    """The path of :func:`steihaug` for one A and g, kept to be cut at any radius.

    Parameters
    ----------
    A, g, preconditioner, rtol, atol, max_iterations
        As in :func:`steihaug`, with the same errors.

    Notes
    -----
    A radius at most as large as one tried before costs no product, a larger one continues the path
    from its end. Memory: four vectors an iteration.

    Examples
    --------
    >>> path = SteihaugPath(torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([3.0, 4.0]))
    >>> [(radius, path.solve(radius).products) for radius in (10.0, 1.0, 0.1)]
    [(10.0, 3), (1.0, 0), (0.1, 0)]
    """

    def __init__(
        self,
        A: LinearMap,
        g: V,
        *,
        preconditioner: LinearMap | None = None,
        rtol: float = 1e-5,
        atol: float = 0.0,
        max_iterations: int | None = None,
    ) -> None:
        problem = pose(A, g, name="g")
        precondition = problem.preconditioner(preconditioner)
        limit = as_limit(max_iterations, len(problem.rhs))
        check_tolerances(rtol, atol)
        self._g = Scaled.of(problem.rhs, rtol, atol)
        self._problem: Problem[V] = problem
        self._in_numpy = problem.in_numpy
        self._again = partial(
            cg, A, preconditioner=preconditioner, rtol=rtol, max_iterations=max_iterations
        )
        self._recurrence = Recurrence(self._g, problem.multiply, precondition, limit)
        # The generator refers to the recurrence, not to this object: a cycle would keep A alive
        # until garbage collection.
        self._segments = self._recurrence.segments()
        self._kept: list[Segment | EndPoint] = []

    def solve(self, radius: float) -> Solution[V]:
        """The step for one radius.

        Parameters
        ----------
        radius
            Bound on ‖s‖_P, positive and finite; ``ValueError`` otherwise.

        Returns
        -------
        Solution
            As of :func:`steihaug`; ``products`` counts those of this call.
        """
        return self._differentiable(self._follow(radius, self._replay()))

    def _differentiable(self, solution: Solution[V]) -> Solution[V]:
        """Inside the radius s = −A⁻¹ g. On it s is a point of a path, no solution of equations."""
        problem = self._problem
        if problem.given is not None and problem.given.requires_grad:
            problem = replace(problem, given=-problem.given)
        return problem.differentiable(solution, self._again)

    def _replay(self) -> Iterator[Segment | EndPoint]:
        yield from self._kept
        for segment in self._segments:
            self._kept.append(segment)
            yield segment

    def _follow(self, radius: float, segments: Iterator[Segment | EndPoint]) -> Solution[V]:
        require(
            math.isfinite(radius) and radius > 0,
            f"radius must be positive and finite, got {radius}; without one, use cg",
        )
        before = self._recurrence.products
        for iterations, segment in enumerate(segments):
            if isinstance(segment, EndPoint):
                return self._answer(segment, iterations, before, self._recurrence.A_scale)
            bound = segment.pPp.new_tensor(self._bound(radius))
            if segment.ends_inside(bound):
                continue
            end = segment.cut(bound, euclidean=self._recurrence.precondition is None)
            units = torch.ones_like(bound), torch.full_like(bound, radius)
            return self._answer(end, iterations + 1, before, *units)
        raise AssertionError("a path ends with an end point")

    def _bound(self, radius: float) -> float:
        """The radius in the model's units, clamped to a range that no path of unit size leaves: the
        answer is computed in units of the radius itself."""
        scales = float(self._recurrence.A_scale), float(self._g.unit)
        bound = as_float(*quotient((radius, scales[0]), (scales[1],)))
        return min(max(bound, 2.0**-LIMIT), 2.0**LIMIT)

    def _answer(
        self, end: EndPoint, iterations: int, before: int, scale: Tensor, unit: Tensor | None = None
    ) -> Solution[V]:
        g, products = self._g.rhs, self._recurrence.products - before
        As = end.r - g
        residual_norm = float(norm(g + As))
        found = Solution(end.s, As, end.status, iterations, products, residual_norm, end.direction)
        return as_kind(self._g.answer(found, scale, unit), in_numpy=self._in_numpy)

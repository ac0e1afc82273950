"""Check a solver's arguments once and convert them to torch; convert its answer back."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch
from numpy.typing import NDArray
from torch import Tensor

from natgrad.solvers.checks import require
from natgrad.solvers.implicit import System, attach
from natgrad.solvers.linear_map import LinearMap, Multiply, as_multiply, as_tensor
from natgrad.solvers.solution import Iterate, Solution, Status, V, stack

# A solver on torch vectors: it yields v, is sent A v, and returns its solution. The same code
# solves for one right-hand side, or for many that share one matrix product a round.
Iteration = Generator[Tensor, Tensor, Solution[Tensor]]


@dataclass(frozen=True)
class Problem(Generic[V]):
    """A x = b with checked parts.

    Attributes
    ----------
    rhs
        b as a torch tensor, (n,) or (n, k).
    multiply
        v ↦ A v on torch vectors and matrices.
    in_numpy
        Whether b was a NumPy array, as the answer then is.
    given
        b with its graph, where it is a tensor.
    """

    rhs: Tensor
    multiply: Multiply
    in_numpy: bool
    given: Tensor | None

    def preconditioner(self, given: LinearMap | None) -> Multiply | None:
        """A preconditioner as a function on vectors like b, or like one of its columns.

        Parameters
        ----------
        given
            An operator, matrix or function, or None.
        """
        if given is None:
            return None
        return as_multiply(given, self.rhs, numpy_caller=self.in_numpy, name="preconditioner")

    def differentiable(
        self,
        solution: Solution[V],
        again: Callable[[Tensor], Solution[Tensor]],
        on_radius: Callable[[Tensor, Tensor], Solution[Tensor]] | None = None,
    ) -> Solution[V]:
        """The solution with an x that carries derivatives, where b or A ask for them.

        Parameters
        ----------
        solution
            The solver's answer.
        again
            Solves the same system, symmetric as it is, for another right-hand side.
        on_radius
            (x̄, x) ↦ the cotangent of b for an x with the status BOUNDARY; None where such an x has
            no derivative.
        """
        if self.given is None or not torch.is_grad_enabled():
            return solution
        if not self.given.requires_grad and not self.multiply.curved:
            return solution
        if on_radius is not None and solution.status is Status.BOUNDARY:
            system = System(self.multiply.with_graph, on_radius, on_radius=True)
        else:
            system = System(self.multiply.with_graph, lambda rhs, _: again(rhs))
        return attach(solution, system, self.given, curved=self.multiply.curved)  # type: ignore[return-value, arg-type]

    def solve(
        self, iterate: Callable[[Tensor, Tensor | None], Iteration], x0: V | None
    ) -> Solution[V]:
        """Run a solver for b, or for each of its columns.

        Parameters
        ----------
        iterate
            Takes a vector b (n,) and its start or None; returns the iteration.
        x0
            The caller's start, like b, or None.

        Raises
        ------
        ValueError, TypeError
            Where x0 is not like b.
        """
        start = as_start(x0, self.rhs)
        if self.rhs.ndim == 1:
            return self.run(iterate(self.rhs, start))
        columns = self.rhs.mT.contiguous()
        starts = [None] * len(columns) if start is None else start.mT.contiguous()
        pairs = zip(columns, starts, strict=True)
        return self.run_columns([iterate(b, as_start(begin, b)) for b, begin in pairs])

    def run(self, iteration: Iteration) -> Solution[V]:
        """Run one iteration to its end. The loop ends since every iteration is bounded.

        Parameters
        ----------
        iteration
            A generator that yields v and is sent A v.
        """
        try:
            vector = next(iteration)
            while True:
                vector = iteration.send(self.multiply(vector))
        except StopIteration as end:
            solution: Solution[Tensor] = end.value
        return as_kind(solution, in_numpy=self.in_numpy)

    def run_columns(self, iterations: list[Iteration]) -> Solution[V]:
        """Run one iteration for each column to its end; a round is one product of a matrix.

        Parameters
        ----------
        iterations
            One for each column.
        """
        found: dict[int, Solution[Tensor]] = {}
        waiting: dict[int, Tensor] = {}

        def advance(column: int, product: Tensor | None) -> None:
            try:
                iteration = iterations[column]
                waiting[column] = next(iteration) if product is None else iteration.send(product)
            except StopIteration as end:
                waiting.pop(column, None)
                found[column] = end.value

        for column in range(len(iterations)):
            advance(column, None)
        while waiting:
            columns = list(waiting)
            # Column-major: each solve reads a column, and most products are faster.
            products = self.multiply(torch.stack([waiting[column] for column in columns]).mT)
            for index, column in enumerate(columns):
                advance(column, products[:, index].contiguous())
        solution = stack([found[column] for column in range(len(iterations))])
        return as_kind(solution, in_numpy=self.in_numpy)


def as_kind(solution: Solution[Tensor], *, in_numpy: bool) -> Solution[V]:
    """Convert a solution to the kind of the caller's b.

    Parameters
    ----------
    solution
        A solution in torch.
    in_numpy
        Whether to convert its vectors to NumPy arrays.
    """
    if not in_numpy:
        return solution  # type: ignore[return-value]

    def give(vector: Tensor) -> Any:
        return vector.cpu().numpy()

    direction = solution.direction
    columns: Any = tuple(as_kind(column, in_numpy=True) for column in solution.columns)
    return replace(
        solution,
        x=give(solution.x),
        Ax=give(solution.Ax),
        direction=None if direction is None else give(direction),
        columns=columns,
        iterates=tuple(Iterate(give(x), xAx) for x, xAx in solution.iterates),
    )  # type: ignore[return-value]


def pose(A: LinearMap, b: V, *, columns: bool = False, name: str = "b") -> Problem[V]:
    """Check b and A against each other.

    Parameters
    ----------
    A
        An operator, matrix or function.
    b
        Torch or NumPy right-hand side.
    columns
        Whether b may be a matrix (n, k).
    name
        The name of b in error messages.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes, dtypes and kinds.
    """
    in_numpy = not isinstance(b, Tensor)
    rhs = as_tensor(b, name, columns=columns)
    require(rhs.ndim == 1 or rhs.shape[1] > 0, f"{name} has no columns; expected at least one")
    multiply = as_multiply(A, rhs, numpy_caller=in_numpy, name="A", like_name=name)
    given = b if isinstance(b, Tensor) else None
    return Problem(rhs, multiply, in_numpy, given)


def as_start(x0: Tensor | NDArray[Any] | None, rhs: Tensor) -> Tensor | None:
    """x0 as a torch tensor; None where it is absent or zero, so that it costs no product.

    Parameters
    ----------
    x0
        The caller's start, or None.
    rhs
        b, whose shape, dtype and device x0 must have; ``ValueError`` otherwise.
    """
    if x0 is None:
        return None
    start = as_tensor(x0, "x0", columns=True)
    if start.shape != rhs.shape or start.dtype != rhs.dtype or start.device != rhs.device:
        raise ValueError(
            f"x0 must be like b, {tuple(rhs.shape)} {rhs.dtype} on {rhs.device}, "
            f"got {tuple(start.shape)} {start.dtype} on {start.device}"
        )
    return start if bool(start.any()) else None

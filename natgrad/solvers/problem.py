"""What a solver is handed, checked once and turned into torch; and its answer, turned back."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch
from numpy.typing import NDArray
from torch import Tensor

from natgrad.solvers.linear_map import LinearMap, Multiply, as_multiply, as_tensor
from natgrad.solvers.solution import Iterate, Solution, V, stack

# A solver on torch vectors: yields v where it needs A v, is sent A v, returns what it found. So one
# text solves for one right-hand side or, taking turns at one product of a matrix, for many.
Iteration = Generator[Tensor, Tensor, Solution[Tensor]]


@dataclass(frozen=True)
class Problem(Generic[V]):
    """A x = b with checked parts: ``rhs`` (n,) or (n, k), products and answers in b's kind."""

    rhs: Tensor
    multiply: Multiply
    in_numpy: bool

    def preconditioner(self, given: LinearMap | None) -> Multiply | None:
        """A preconditioner as a function on vectors like b's, or like one of its columns."""
        if given is None:
            return None
        return as_multiply(given, self.rhs, numpy_caller=self.in_numpy, name="preconditioner")

    def solve(
        self, iterate: Callable[[Tensor, Tensor | None], Iteration], x0: V | None
    ) -> Solution[V]:
        """``iterate(b, x0)`` carried to its end, for b or for each of its columns."""
        start = as_start(x0, self.rhs)
        if self.rhs.ndim == 1:
            return self.run(iterate(self.rhs, start))
        columns = self.rhs.mT.contiguous()
        starts = [None] * len(columns) if start is None else start.mT.contiguous()
        return self.run_columns(
            [
                iterate(column, as_start(begin, column))
                for column, begin in zip(columns, starts, strict=True)
            ]
        )

    def run(self, iteration: Iteration) -> Solution[V]:
        """Carry one iteration to its end. It is bounded, and so is this loop."""
        try:
            vector = next(iteration)
            while True:
                vector = iteration.send(self.multiply(vector))
        except StopIteration as end:
            solution: Solution[Tensor] = end.value
        return as_kind(solution, in_numpy=self.in_numpy)

    def run_columns(self, iterations: list[Iteration]) -> Solution[V]:
        """Carry one iteration a column to their ends; each round is one product of a matrix."""
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
            # Column by column in memory: what each solve reads, and faster for most products.
            products = self.multiply(torch.stack([waiting[column] for column in columns]).mT)
            for index, column in enumerate(columns):
                advance(column, products[:, index].contiguous())
        solution = stack([found[column] for column in range(len(iterations))])
        return as_kind(solution, in_numpy=self.in_numpy)


def as_kind(solution: Solution[Tensor], *, in_numpy: bool) -> Solution[V]:
    """The same solution with NumPy vectors where the caller's b was one."""
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
    """Check b and A against each other. ``columns`` says whether b may be a matrix (n, k), ``name``
    what the caller knows it as."""
    in_numpy = not isinstance(b, Tensor)
    rhs = as_tensor(b, name, columns=columns)
    require(rhs.ndim == 1 or rhs.shape[1] > 0, f"{name} has no columns; expected at least one")
    multiply = as_multiply(A, rhs, numpy_caller=in_numpy, name="A", like_name=name)
    return Problem(rhs, multiply, in_numpy)


def as_start(x0: Tensor | NDArray[Any] | None, rhs: Tensor) -> Tensor | None:
    """x0 as a torch tensor like b; None where it is absent or zero, which costs no product."""
    if x0 is None:
        return None
    start = as_tensor(x0, "x0", columns=True)
    if start.shape != rhs.shape or start.dtype != rhs.dtype or start.device != rhs.device:
        raise ValueError(
            f"x0 must be like b, {tuple(rhs.shape)} {rhs.dtype} on {rhs.device}, "
            f"got {tuple(start.shape)} {start.dtype} on {start.device}"
        )
    return start if bool(start.any()) else None


def as_limit(max_iterations: int | None, size: int) -> int:
    """The bound of the loop: 10 n where none is given."""
    if max_iterations is None:
        return 10 * size
    return as_count(max_iterations, "max_iterations")


def as_count(number: int, name: str) -> int:
    try:
        count = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {number!r}") from None
    require(count >= 0, f"{name} must be >= 0, got {number}")
    return count


def check_tolerances(rtol: float, atol: float = 0.0) -> None:
    """Infinity passes: any answer will do."""
    require(rtol >= 0, f"rtol must be >= 0, got {rtol}")
    require(atol >= 0, f"atol must be >= 0, got {atol}")


def check_dense(vector: Tensor, name: str) -> None:
    if vector.layout != torch.strided:
        raise TypeError(f"{name} is {vector.layout}; expected a dense tensor: .to_dense()")


def check_damping(damping: float) -> None:
    require(
        math.isfinite(damping) and damping >= 0, f"damping must be finite and >= 0, got {damping}"
    )


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)

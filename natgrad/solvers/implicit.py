"""Derivatives of x = (A + λ I)⁻¹ b by the implicit function theorem: one more solve.

With u = (A + λ I)⁻¹ x̄, for a cotangent x̄ of x, the cotangent of b is u and that of A's parameters
that of −uᵀA x, at x held fixed; A is symmetric. The iterations are not recorded: memory does not
grow with them, and a derivative is as accurate as its solve. The backward pass is differentiable
itself, so that second derivatives are two solves more, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from natgrad.solvers.solution import Solution, Status

Product = Callable[[Tensor], Tensor]
# The statuses of an x that solves the system, as far as it was asked to.
SOLVED = {Status.CONVERGED, Status.ZERO_RHS}


@dataclass(frozen=True)
class System:
    """The system that x solves.

    Attributes
    ----------
    product
        v ↦ A v, with its graph.
    solve
        (x̄, x) ↦ u, the solution for another right-hand side, differentiable. x, which x̄ is the
        cotangent of, matters to a system that depends on it.
    why_not
        Why x has no derivative; empty if it has one.
    on_radius
        Whether an x with the status BOUNDARY solves it.
    """

    product: Product
    solve: Callable[[Tensor, Tensor], Solution[Tensor]]
    why_not: str = ""
    on_radius: bool = False


def attach(
    solution: Solution[Tensor], system: System, rhs: Tensor, *, curved: bool
) -> Solution[Tensor]:
    """Return the solution with an x that carries the derivatives in b and in A's parameters.

    Parameters
    ----------
    solution
        The solution; its other fields stay without a graph.
    system
        What it solves.
    rhs
        The caller's b, with its graph.
    curved
        Whether products with A carry a graph. Costs one product, to find what they depend on.
    """
    parameters: list[Tensor] = []
    if curved:
        parameters = _parameters_of(system.product, solution.x)
        solution = replace(solution, products=solution.products + 1)
    if not parameters and not rhs.requires_grad:
        return solution
    solved = SOLVED | {Status.BOUNDARY} if system.on_radius else SOLVED
    if solution.status not in solved and not system.why_not:
        why = f"the solve ended with {solution.status.name}: {solution.status.value}"
        system = replace(system, why_not=why)
    x = _Solve.apply(system, solution.x, rhs, *parameters)  # type: ignore[no-untyped-call]
    return replace(solution, x=x)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(system: System, x: Tensor, rhs: Tensor, *parameters: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system, _, _, *parameters = inputs
        ctx.save_for_backward(output, *parameters)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        (cotangent,), system = cotangents, ctx.system
        x, *parameters = ctx.saved_tensors
        if cotangent is None:  # of a path that is held fixed
            return (None,) * (3 + len(parameters))
        if system.why_not:
            raise RuntimeError(
                f"x has no derivative here: {system.why_not}. Detach it, or b and A, where no "
                "gradient is wanted"
            )
        adjoint = system.solve(cotangent, x)
        if adjoint.status not in SOLVED:
            raise RuntimeError(
                "the derivative of a solve is another one, and that ended with "
                f"{adjoint.status.name}: {adjoint.status.value}"
            )
        u = adjoint.x
        found: tuple[Tensor | None, ...] = ()
        if parameters:
            again, fixed = torch.is_grad_enabled(), _Fixed()  # again: create_graph=True
            with torch.enable_grad():
                Ax = system.product(_Gate.apply(x, fixed) if again else x.detach())  # type: ignore[no-untyped-call]
                found = torch.autograd.grad(
                    Ax, parameters, -u, retain_graph=True, create_graph=again, allow_unused=True
                )
            fixed.held = False
        return None, None, u, *found


class _Fixed:
    held = True


class _Gate(torch.autograd.Function):
    """x itself, through which no cotangent passes while it is held fixed."""

    @staticmethod
    def forward(x: Tensor, fixed: _Fixed) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.fixed = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return None if ctx.fixed.held else cotangents[0], None


class _Captured(TorchFunctionMode):
    """Collects the tensors with a graph that functions of torch are given from outside."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._inside: dict[int, Tensor] = {id(known): known}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor) and given.requires_grad and id(given) not in self._inside:
                self.found.setdefault(id(given), given)
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and id(made) not in self.found:
                self._inside[id(made)] = made  # kept alive, so that no other gets its id
        return result


def _parameters_of(product: Product, x: Tensor) -> list[Tensor]:
    """The tensors that A depends on: those that its code touches, and leaves behind others."""
    with torch.enable_grad(), _Captured(x) as captured:
        Ax = product(x)
    touched = set(captured.found.values())
    nodes = {tensor.grad_fn for tensor in touched} - {None}

    def stems_from_another(tensor: Tensor) -> bool:
        return any(
            node is not tensor.grad_fn and (node in nodes or leaf in touched)
            for node, leaf in _ancestors(tensor.grad_fn, frozenset())
        )

    # One that is computed from another would count its share twice: keep the other alone.
    parameters = [tensor for tensor in captured.found.values() if not stems_from_another(tensor)]
    # Code that no function of torch shows, such as an extension's, is met by its leaves.
    leaves = [leaf for _, leaf in _ancestors(Ax.grad_fn, frozenset(p.grad_fn for p in parameters))]
    return list(dict.fromkeys([*parameters, *(leaf for leaf in leaves if leaf is not None)]))


def _ancestors(start: Any, ends: frozenset[Any]) -> Iterator[tuple[Any, Tensor | None]]:
    """The nodes of a graph up to ``ends``, and the leaf that a node stands for."""
    stack, seen = [start], set(ends)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node, getattr(node, "variable", None)
        stack.extend(following for following, _ in node.next_functions)

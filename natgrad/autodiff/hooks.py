"""Hooks on the way of a gradient: left out of the graphs recorded here, and found in others.

``tensor.register_hook`` may clip, scale or mask what passes through an activation. The backward
pass is then not the transposed Jacobian of the model, and no number in the graph says so: torch
shows a node's hooks to nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from natgrad.autodiff.differentiation import NotTwiceDifferentiable, gradients

# A hook may act on large gradients only, on small ones, or on those of one sign.
SCALES = (1.0, -1.0, 2.0**40, 2.0**-40)
# How many times the rounding that was seen once the rounding of another sum may be.
ROUNDING = 1e3
_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class WithoutTensorHooks(TorchFunctionMode):
    """Inside, ``tensor.register_hook`` registers nothing, and returns a handle of nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.register_hook:
            return RemovableHandle(OrderedDict())
        return func(*args, **(kwargs or {}))


def require_no_hooks(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    nodes: Sequence[Node],
) -> None:
    """Raise :class:`NotTwiceDifferentiable` where a hook changes a gradient between the nodes.

    What a node is handed must be what other nodes returned, or the engine's sum of that, whatever
    its value, and nothing may write to it in between. Hooks that only look are no matter. A write
    through NumPy's view of the memory is not seen. Cost: four backward passes with each operation
    seen by Python.
    """
    twins = sum(len(edges) - len(set(edges)) for edges in (node.next_functions for node in nodes))
    for scale in SCALES:
        seeds = [(scale * weight).detach() for weight in weights]
        with ExitStack() as stack:
            watch = _Watch(seeds, twins)
            for node in nodes:
                # Hooks of tensors run before all these, so ours must be the last and the first.
                before = node.register_prehook(watch.enter)
                after = node.register_hook(watch.leave)
                following: Any = after.hooks_dict_ref()
                others = [(key, hook) for key, hook in following.items() if key != after.id]
                if others:  # torch runs them in the order of insertion
                    following.clear()
                    following[after.id] = watch.leave
                    following.update(others)
                stack.callback(before.remove)
                stack.callback(after.remove)
            with watch:
                found = gradients(outputs, inputs, seeds)
        watch.enter(found)
        if watch.changed:
            raise NotTwiceDifferentiable(
                "a hook on an activation, registered by tensor.register_hook or on a node of the "
                "graph, changes the gradient that comes through it, so that the backward pass is "
                "not the model's derivative. Hand over a forward function and data, "
                "Fisher(forward, parameters, data=x), which leaves hooks of tensors out; or "
                "compute the outputs without the hook"
            )


def require_linear(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    custom: Sequence[str],
) -> None:
    """Raise :class:`NotTwiceDifferentiable` where gradients do not scale with the weights: where a
    ``custom`` Function clips, say. Cost: four backward passes."""
    expected: Sequence[Tensor | None] | None = None
    for scale in SCALES:
        seeds = [scale * weight for weight in weights]
        pieces = [g if g is None else g / scale for g in gradients(outputs, inputs, seeds)]
        expected = pieces if expected is None else expected
        for one, other in zip(expected, pieces, strict=True):
            if one is None or other is None:
                continue
            kind = torch.finfo(one.dtype)
            allowed = kind.eps**0.5 * one.abs().amax() + kind.tiny / abs(scale)
            # Values that are not finite are not this comparison's to judge.
            difference = (one - other).abs()
            if bool(((difference > allowed) & torch.isfinite(difference)).any()):
                raise not_linear(custom)


def not_linear(custom: Sequence[str]) -> NotTwiceDifferentiable:
    """The error for a graph whose ``custom`` Functions do not keep what products need."""
    names = ", ".join(sorted({name.removesuffix("Backward") for name in custom})) or "an operation"
    return NotTwiceDifferentiable(
        f"the backward pass through {names} is not a differentiable linear function of the "
        "gradient that it is handed: it is marked once_differentiable, runs under no_grad, uses "
        ".data or detach(), clips, or is not the derivative. Write it with differentiable "
        "operations on that gradient (and on saved tensors), without once_differentiable; or use "
        "torch's own operations"
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees a backward pass; ``changed`` where a node was handed what no node returned, or where
    something between two nodes wrote to a gradient. ``twins`` is how often a node returns the same
    gradient twice to another one, which the engine adds to itself."""

    def __init__(self, seeds: Sequence[Tensor], twins: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By identity, and weakly: a pass that kept all gradients would need their memory at once.
        # With the address of each: `gradient.data = ...` is no operation.
        self._own = WeakIdKeyDictionary()
        self._inside, self._twins = False, twins
        self.changed = False
        self._keep(seeds)

    def _keep(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._own[tensor] = _address(tensor)

    def enter(self, gradients: Sequence[Any]) -> None:
        """What a node is handed."""
        self._inside = True
        for gradient in gradients:
            if isinstance(gradient, Tensor):
                known = self._own.get(gradient, "none of ours")  # type: ignore[no-untyped-call]
                self.changed = self.changed or known != _address(gradient)

    def leave(self, returned: Sequence[Any], _: Sequence[Any]) -> None:
        """What it returned; a saved tensor as it is, maybe."""
        self._inside = False
        self._keep(returned)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        outcome = func(*args, **(kwargs or {}))
        if self._inside:
            self._keep(tree_iter(outcome))
            return outcome
        # Several gradients that meet in one tensor are summed between the nodes, by the engine.
        if func in _SUMS and len(given) == 2 and not kwargs and all(t in self._own for t in given):
            self._twins -= given[0] is given[1]
            self.changed = self.changed or self._twins < 0
            self._keep(tree_iter(outcome))
        elif func._schema.is_mutable and given:  # in place, on its first argument or a view of ours
            written = _address(given[0])
            self.changed = self.changed or any(_address(own) == written for own in self._own)
        return outcome


def _address(tensor: Tensor) -> int | None:
    """Of the memory; None for tensors without one of their own (sparse ones)."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else None

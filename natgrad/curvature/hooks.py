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

from natgrad.curvature.differentiation import NotTwiceDifferentiable, gradients

# A hook may act on large gradients only, or on small ones.
SCALES = (1.0, 2.0**40, 2.0**-40)
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

    What a hook computes shows as an operation between two nodes, whatever the gradient's value, and
    that it changes the gradient as a node's use of the result. Hooks that only look are no matter.
    Cost: three backward passes with each operation seen by Python.
    """
    for scale in SCALES:
        seeds = [(scale * weight).detach() for weight in weights]
        with ExitStack() as stack:
            watch = _Watch(seeds)
            for node in nodes:
                # Hooks of tensors run before all these, so ours must be the last and the first.
                before = node.register_prehook(watch.enter)
                after = node.register_hook(watch.leave)
                following: Any = after.hooks_dict_ref()
                following.move_to_end(after.id, last=False)
                stack.callback(before.remove)
                stack.callback(after.remove)
            with watch:
                found = gradients(outputs, inputs, seeds)
        watch.use(found)
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
    ``custom`` Function clips, say. Cost: three backward passes."""
    expected: Sequence[Tensor | None] | None = None
    for scale in SCALES:
        seeds = [scale * weight for weight in weights]
        pieces = [g if g is None else g / scale for g in gradients(outputs, inputs, seeds)]
        expected = pieces if expected is None else expected
        for one, other in zip(expected, pieces, strict=True):
            if one is None or other is None:
                continue
            kind = torch.finfo(one.dtype)
            allowed = kind.eps**0.5 * one.abs().amax() + kind.tiny / scale
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
    """Sees the operations of a backward pass; ``changed`` where the result of one between two nodes
    was used by a node, or one between two nodes wrote to a gradient."""

    def __init__(self, seeds: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By identity, and weakly: a pass that kept all gradients would need their memory at once.
        self._own, self._foreign = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        for seed in seeds:
            self._own[seed] = True
        self._inside = False
        self.changed = False

    def enter(self, *_: Any) -> None:
        self._inside = True

    def leave(self, *_: Any) -> None:
        self._inside = False

    def use(self, tensors: Iterable[Any]) -> None:
        self.changed = self.changed or any(
            tensor in self._foreign for tensor in tensors if isinstance(tensor, Tensor)
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        outcome = func(*args, **(kwargs or {}))
        own = [tensor in self._own for tensor in given]
        # Several gradients that meet in one tensor are summed between the nodes, by the engine.
        summed = func in _SUMS and len(given) == 2 and all(own) and not kwargs
        if self._inside or summed:
            self.use(given)
            into = self._own
        else:
            # In place, on its first argument.
            self.changed = self.changed or (func._schema.is_mutable and own[:1] == [True])
            into = self._foreign
        for leaf in tree_iter(outcome):
            if isinstance(leaf, Tensor):
                into[leaf] = True
        return outcome

"""Hooks on activations: left out of graphs recorded here, detected in graphs of the caller.

``tensor.register_hook`` may clip, scale or mask the gradient of an activation. The backward pass is
then not the transposed Jacobian of the model, and the graph does not show it: torch does not expose
the hooks of a node.
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
# Comparisons allow this many times the rounding error that was measured on one sample.
ROUNDING = 1e3
_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class WithoutTensorHooks(TorchFunctionMode):
    """A context in which ``tensor.register_hook`` does nothing and returns an empty handle."""

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
    """Raise :class:`NotTwiceDifferentiable` if a hook changes a gradient between two nodes.

    A gradient that enters a node must be a tensor that other nodes returned, or the engine's sum of
    such tensors, and nothing may write to it in between. Values are not compared. Hooks that only
    read pass. A write through NumPy's view of the memory is not detected.

    Parameters
    ----------
    outputs, inputs, weights
        The backward pass to watch, as in :func:`natgrad.autodiff.differentiation.gradients`.
    nodes
        The nodes between them.

    Notes
    -----
    Cost: four backward passes in which Python sees each operation.
    """
    edges = [node.next_functions for node in nodes]
    repeated = sum(len(following) - len(set(following)) for following in edges)
    for scale in SCALES:
        seeds = [(scale * weight).detach() for weight in weights]
        with ExitStack() as stack:
            monitor = _GradientMonitor(seeds, repeated)
            for node in nodes:
                # The monitor must run after all other prehooks and before all other hooks. torch
                # runs prehooks of tensors first.
                before = node.register_prehook(monitor.entered)
                after = node.register_hook(monitor.returned)
                hooks: Any = after.hooks_dict_ref()
                others = [(key, hook) for key, hook in hooks.items() if key != after.id]
                if others:  # torch runs them in the order of insertion
                    hooks.clear()
                    hooks[after.id] = monitor.returned
                    hooks.update(others)
                stack.callback(before.remove)
                stack.callback(after.remove)
            with monitor:
                found = gradients(outputs, inputs, seeds)
        monitor.entered(found)
        if monitor.changed:
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
    """Raise :class:`NotTwiceDifferentiable` if gradients do not scale with the cotangents.

    That is the case where a custom Function clips, for example.

    Parameters
    ----------
    outputs, inputs, weights
        The backward pass to test, as in :func:`natgrad.autodiff.differentiation.gradients`.
    custom
        Names of the custom Functions in the graph, for the error's text.

    Notes
    -----
    Cost: four backward passes.
    """
    expected: Sequence[Tensor | None] | None = None
    for scale in SCALES:
        seeds = [scale * weight for weight in weights]
        pieces = [g if g is None else g / scale for g in gradients(outputs, inputs, seeds)]
        expected = pieces if expected is None else expected
        for one, other in zip(expected, pieces, strict=True):
            if one is None or other is None:
                continue
            precision = torch.finfo(one.dtype)
            allowed = precision.eps**0.5 * one.abs().amax() + precision.tiny / abs(scale)
            # This comparison says nothing about values that are not finite: skip them.
            difference = (one - other).abs()
            if bool(((difference > allowed) & torch.isfinite(difference)).any()):
                raise not_linear(custom)


def not_linear(custom: Sequence[str]) -> NotTwiceDifferentiable:
    """Build the error for a graph whose ``custom`` Functions are not linear or differentiable."""
    names = ", ".join(sorted({name.removesuffix("Backward") for name in custom})) or "an operation"
    return NotTwiceDifferentiable(
        f"the backward pass through {names} is not a differentiable linear function of the "
        "gradient that it is handed: it is marked once_differentiable, runs under no_grad, uses "
        ".data or detach(), clips, or is not the derivative. Write it with differentiable "
        "operations on that gradient (and on saved tensors), without once_differentiable; or use "
        "torch's own operations"
    )


class _GradientMonitor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a backward pass for gradients that are changed between two nodes.

    ``changed`` is True if a gradient entered a node that no node returned, or if an operation
    between two nodes wrote to a gradient.

    Parameters
    ----------
    seeds
        The cotangents that the backward pass starts from.
    repeated
        How often a node returns the same gradient twice to another one. The engine then adds the
        gradient to itself.
    """

    def __init__(self, seeds: Sequence[Tensor], repeated: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Keyed weakly and by identity: keeping all gradients alive would cost their whole memory.
        # The address is stored since `gradient.data = ...` is no operation that can be seen.
        self._known = WeakIdKeyDictionary()
        self._inside_node, self._repeated = False, repeated
        self.changed = False
        self._remember(seeds)

    def _remember(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._known[tensor] = _address(tensor)

    def entered(self, gradients: Sequence[Any]) -> None:
        """Check the gradients that enter a node: the last of its prehooks."""
        self._inside_node = True
        for gradient in gradients:
            if isinstance(gradient, Tensor):
                known = self._known.get(gradient, "unknown")  # type: ignore[no-untyped-call]
                self.changed = self.changed or known != _address(gradient)

    def returned(self, gradients: Sequence[Any], _: Sequence[Any]) -> None:
        """Remember the gradients that a node returns: the first of its hooks.

        They may be tensors that no operation made, such as saved ones.
        """
        self._inside_node = False
        self._remember(gradients)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        outcome = func(*args, **(kwargs or {}))
        if self._inside_node:
            self._remember(tree_iter(outcome))
            return outcome
        # Between nodes the engine sums the gradients of a tensor that was used several times.
        are_known = len(given) == 2 and all(tensor in self._known for tensor in given)
        if func in _SUMS and not kwargs and are_known:
            self._repeated -= given[0] is given[1]
            self.changed = self.changed or self._repeated < 0
            self._remember(tree_iter(outcome))
        elif func._schema.is_mutable and given:  # it writes to its first argument, maybe a view
            written = _address(given[0])
            self.changed = self.changed or any(_address(known) == written for known in self._known)
        return outcome


def _address(tensor: Tensor) -> int | None:
    """Return the address of a tensor's memory.

    None for those that have none: sparse tensors, and the symbolic zeros of forward mode.
    """
    if tensor.layout is not torch.strided or tensor._is_zerotensor():
        return None
    return tensor.untyped_storage().data_ptr()

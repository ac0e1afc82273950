"""The graph behind some outputs, read before it is differentiated: what it reaches, what it hides.

Curvature trusts a backward pass twice: as the transposed Jacobian, and as a linear function that
can itself be differentiated. C++ operations of torch keep both promises or raise. What need not
keep them is found here: by the kinds of nodes, or, where only running it can tell, by one trial
for a model's structure (:meth:`Graph.once`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils.weak import WeakIdKeyDictionary

from natgrad.autodiff.convolution import LEAN_FUNCTIONS
from natgrad.autodiff.differentiation import NotTwiceDifferentiable
from natgrad.autodiff.hooks import not_linear, require_linear, require_no_hooks

# Inserted by module.register_full_backward_hook: the identity, but for the hooks that it carries.
MODULE_HOOK = "BackwardHookFunctionBackward"
REENTRANT = "CheckpointFunctionBackward"
# What torch.autograd.function.once_differentiable puts into a recorded backward pass.
ONCE = "torch::autograd::Error"
# Structures that were tried, and how often each was built, by a parameter of their model.
_TRIED: Any = WeakIdKeyDictionary()
AccumulateGrad = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
# Types of torch's own operations, met before.
_PLAIN: set[type] = set()


class Graph:
    """The nodes behind ``outputs``; ``custom`` names the autograd Functions of Python and of C++
    extensions among them, whose backward passes need not be linear or differentiable.

    Raises :class:`NotTwiceDifferentiable` for a reentrant checkpoint, behind which the graph ends.
    Cost: about a microsecond a node.
    """

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self.custom: list[str] = []
        self._leaves = {output for output in outputs if output.grad_fn is None}
        self._seen: set[Node] = set()
        kinds: list[object] = []
        module_hooks: list[Node] = []
        stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
        # Each operator comes through here, so that the loop asks no more of a common node than its
        # type: a microsecond a node is what small networks notice.
        seen, plain = self._seen, _PLAIN
        while stack:
            node: Any = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            kind = type(node)
            if kind is AccumulateGrad:
                self._leaves.add(node.variable)
                continue
            for following, _ in node.next_functions:
                if following is not None:
                    stack.append(following)
            if kind in plain:
                kinds.append(kind)
                continue
            name = node.name()
            # Functions of one name may be others; torch's nodes without a type have only a name.
            kinds.append(kind if issubclass(kind, BackwardCFunction) else name)
            if name == MODULE_HOOK:
                module_hooks.append(node)
            elif name == REENTRANT:
                raise NotTwiceDifferentiable(
                    "torch.utils.checkpoint with use_reentrant=True hides the layers inside it: "
                    "the graph of the outputs ends there, and their curvature would be zero. Pass "
                    "use_reentrant=False"
                )
            elif issubclass(kind, BackwardCFunction):
                if getattr(kind, "_forward_cls", None) not in LEAN_FUNCTIONS:
                    self.custom.append(name)
            elif "CppNode" in name:
                self.custom.append(name)
            elif kind.__name__ != "CppFunction":  # the type of all that have none of their own
                plain.add(kind)
        self._structure = hash(tuple(kinds))
        self._hooks = [hooks for node in module_hooks for hooks in _hooks_of(node)]

    @property
    def nodes(self) -> list[Node]:
        """All nodes but those of leaves."""
        return [node for node in self._seen if type(node) is not AccumulateGrad]

    def reaches(self, parameter: Tensor) -> bool:
        """Whether the outputs depend on a parameter, a leaf or not."""
        return parameter in self._leaves or parameter.grad_fn in self._seen

    def computes_once(self) -> bool:
        """Whether this graph, of a recorded backward pass, cannot be differentiated on purpose."""
        return any(node.name() == ONCE for node in self.nodes)

    def require_linear(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> None:
        """Raise :class:`NotTwiceDifferentiable` where the backward pass from ``outputs`` to
        ``inputs`` is no linear map: by hooks, or by Functions of Python and extensions."""
        require_no_hooks(outputs, inputs, weights, self.nodes)
        if self.custom:
            require_linear(outputs, inputs, weights, self.custom)

    def require_recorded(self, pieces: Sequence[Tensor]) -> None:
        """Raise :class:`NotTwiceDifferentiable` where ``pieces``, of this graph's backward pass
        with a graph of its own, cannot be differentiated on purpose."""
        if self.custom and Graph(pieces).computes_once():
            raise not_linear(self.custom)

    def once(self, parameter: Tensor, trial: Callable[[], None]) -> None:
        """Run ``trial`` for the first graph of a model's structure, known by one of its parameters,
        and again for the 2nd, 4th, 8th, …: hooks may be switched on later, and a structure does not
        show them. A trial that raised is not counted."""
        known: dict[tuple[str, int], int] = _TRIED.setdefault(parameter, {})
        key = trial.__name__, self._structure
        count = known.get(key, 0) + 1
        if not count & (count - 1):
            trial()
        known[key] = count

    @contextmanager
    def unhooked(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Inside, backward passes do not run the hooks of modules and of the parameters: they are
        about the gradients that a training step uses, and clip or log them, where curvature is of
        the model. Nobody else's code runs, and no hook is lost."""
        held = [hooks for hooks in self._hooks if hooks]
        held += [hooks for p in parameters if (hooks := getattr(p, "_backward_hooks", None))]
        if not held:
            yield
            return
        copies = [dict(hooks) for hooks in held]
        try:
            for hooks in held:
                hooks.clear()
            yield
        finally:
            for hooks, copy in zip(held, copies, strict=True):
                hooks.update(copy)


def _hooks_of(node: Node) -> Iterator[dict[int, Any]]:
    """The dictionaries of a node's hooks, which torch keeps to itself but shares with the handle of
    any further hook."""
    for register in (node.register_hook, node.register_prehook):
        handle = register(_nothing)
        hooks: Any = handle.hooks_dict_ref()
        handle.remove()
        if hooks is not None:
            yield hooks


def _nothing(*_: Any) -> None:
    return None

"""Inspect an autograd graph before differentiating it: leaves, custom Functions, hooks.

Curvature relies on a backward pass being the transposed Jacobian, and a linear function that can
itself be differentiated. C++ operations of torch are both, or raise. Nodes that may break this are
found here by their types or, if only running them can tell, by one trial for each structure of a
model (:meth:`Graph.try_once`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils.weak import WeakIdKeyDictionary

from natgrad.autodiff.convolution import LEAN_FUNCTIONS
from natgrad.autodiff.differentiation import NotTwiceDifferentiable
from natgrad.autodiff.hooks import not_linear, require_linear, require_no_hooks

# Inserted by module.register_full_backward_hook: an identity that carries the hooks.
MODULE_HOOK = "BackwardHookFunctionBackward"
REENTRANT = "CheckpointFunctionBackward"
# Node that torch.autograd.function.once_differentiable puts into a recorded backward pass.
ONCE_DIFFERENTIABLE = "torch::autograd::Error"
# For a parameter of each model: the trials made, by structure, and how often each came up.
_TRIALS: Any = WeakIdKeyDictionary()
AccumulateGrad = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
# Node types of torch's own operations that were seen before.
_BUILT_IN: set[type] = set()


class Graph:
    """The nodes behind ``outputs``.

    ``custom`` names the autograd Functions of Python and of C++ extensions among the nodes, whose
    backward passes need not be linear or differentiable. ``hooks`` are those of modules, as torch
    keeps them, for :func:`~natgrad.autodiff.differentiation.without_hooks`.

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
        # Every operator pays for this loop, and small networks notice a microsecond a node: for
        # common nodes it looks at the type alone.
        seen, built_in = self._seen, _BUILT_IN
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
            if kind in built_in:
                kinds.append(kind)
                continue
            name = node.name()
            # Two Functions may share a name, so take the type; untyped nodes have only a name.
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
            elif kind.__name__ != "CppFunction":  # the type that untyped nodes share
                built_in.add(kind)
        self._structure = hash(tuple(kinds))
        self.hooks = [hooks for node in module_hooks for hooks in _hooks_of(node)]

    @property
    def nodes(self) -> list[Node]:
        """All nodes except those of leaves."""
        return [node for node in self._seen if type(node) is not AccumulateGrad]

    def reaches(self, parameter: Tensor) -> bool:
        """Tell whether the outputs depend on a parameter, which need not be a leaf."""
        return parameter in self._leaves or parameter.grad_fn in self._seen

    def computes_once(self) -> bool:
        """Tell whether this recorded backward pass contains a ``once_differentiable`` Function."""
        return any(node.name() == ONCE_DIFFERENTIABLE for node in self.nodes)

    def require_linear(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> None:
        """Raise :class:`NotTwiceDifferentiable` unless the backward pass is a linear map.

        Hooks and custom Functions are tested on gradients of ``outputs`` in ``inputs``, with one
        cotangent of ``weights`` for each output.
        """
        require_no_hooks(outputs, inputs, weights, self.nodes)
        if self.custom:
            require_linear(outputs, inputs, weights, self.custom)

    def require_recorded(self, pieces: Sequence[Tensor]) -> None:
        """Raise :class:`NotTwiceDifferentiable` if a ``once_differentiable`` Function made them.

        ``pieces`` are gradients of this graph, computed with ``create_graph=True``.
        """
        if self.custom and Graph(pieces).computes_once():
            raise not_linear(self.custom)

    def try_once(self, parameter: Tensor, trial: Callable[[], None]) -> None:
        """Run ``trial`` for the 1st, 2nd, 4th, 8th, … graph of a model's structure.

        It is repeated because hooks may be added later, which the structure does not show. A trial
        that raises is not counted.

        Parameters
        ----------
        parameter
            A parameter of the model, by which the counts are kept.
        trial
            The check to run; its ``__name__`` tells trials of one graph apart.
        """
        known: dict[tuple[str, int], int] = _TRIALS.setdefault(parameter, {})
        key = trial.__name__, self._structure
        count = known.get(key, 0) + 1
        if not count & (count - 1):
            trial()
        known[key] = count


def _hooks_of(node: Node) -> Iterator[dict[int, Any]]:
    """Yield the dictionaries that hold a node's hooks.

    torch does not expose them, but the handle of any newly registered hook refers to them.
    """
    for register in (node.register_hook, node.register_prehook):
        handle = register(_no_op)
        hooks: Any = handle.hooks_dict_ref()
        handle.remove()
        if hooks is not None:
            yield hooks


def _no_op(*_: Any) -> None:
    return None

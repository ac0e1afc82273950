"""The graph of a loss, kept from the ``backward()`` calls of a closure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class RecordedBackward(TorchFunctionMode):
    """Inside, ``tensor.backward()`` keeps its graph; ``roots`` collects the tensors it starts from.

    A standard closure frees the graph of its loss before it returns; exact curvature of that very
    loss needs it. ``scalar()`` is Σ over the calls of (tensor · weight), whose gradient was
    accumulated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward:
            root, *rest = args
            named = dict(
                zip(("gradient", "retain_graph", "create_graph", "inputs"), rest, strict=False)
            )
            named.update(kwargs)
            named["retain_graph"], named["create_graph"] = True, False
            self.roots.append((root, named.get("gradient")))
            return func(root, **named)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def scalar(self) -> Tensor:
        """The recorded objective with its graph. Raises ``ValueError`` where there was none."""
        if not self.roots:
            raise ValueError(
                "the closure called no loss.backward(): exact curvature is taken from the graph "
                "that the call starts from; torch.autograd.backward and .grad are not seen"
            )
        parts = [
            root.sum() if weight is None else (root * weight).sum() for root, weight in self.roots
        ]
        return torch.stack([part.double() for part in parts]).sum()

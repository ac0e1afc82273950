"""What a layer's gradient is made of: its inputs, unrolled to rows, and its output gradients.

The gradient of one sample in the weight matrix (d_out, d_in) of a linear, convolutional or
embedding layer is Σ_r g_r a_rᵀ over the R positions where the sample uses the weights: time steps,
pixels, tokens. A bias adds a constant 1 to a.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Layer:
    """A supported module and what its calls saw, in the order of the calls."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def owners(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def is_embedding(self) -> bool:
        return isinstance(self.module, nn.Embedding)

    def rows(self) -> Tensor:
        """The inputs (N, R, d_in), with the bias's 1; for an embedding its indices (N, R).

        Calls stand side by side in R. Raises ``ValueError`` where calls differ in N.
        """
        unrolled = [self._unroll(inputs.detach()) for inputs in self.inputs]
        if len({len(rows) for rows in unrolled}) != 1:
            raise ValueError(
                f"{self.module} was called for batches of {[len(rows) for rows in unrolled]} "
                "samples in one forward pass; one batch size is expected"
            )
        rows = torch.cat(unrolled, dim=1)
        if self.bias is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
        return rows

    def gradients(self, found: Sequence[Tensor | None]) -> Tensor:
        """Output gradients, one a call (None for zeros), as rows (N, R, d_out)."""
        pieces = []
        for output, gradient in zip(self.outputs, found, strict=True):
            full = torch.zeros_like(output) if gradient is None else gradient
            if isinstance(self.module, (nn.Conv1d, nn.Conv2d)):
                full = full.flatten(2).mT
            pieces.append(full.reshape(len(full), -1, full.shape[-1]))
        rows = torch.cat(pieces, dim=1)
        if isinstance(self.module, nn.Embedding) and self.module.padding_idx is not None:
            rows = rows * (self.rows() != self.module.padding_idx).unsqueeze(2)
        return rows

    def matrix(self, pieces: Sequence[Tensor]) -> Tensor:
        """Pieces shaped like the owners, with a trailing k, as matrices (k, d_out, d_in)."""
        weight = pieces[0].flatten(1, -2) if pieces[0].ndim > 2 else pieces[0]
        matrix = weight.movedim(-1, 0)
        if self.is_embedding:
            return matrix.mT
        if self.bias is not None:
            matrix = torch.cat([matrix, pieces[1].mT.unsqueeze(2)], dim=2)
        return matrix

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """The inverse of :meth:`matrix`."""
        if self.is_embedding:
            matrix = matrix.mT
        weight = matrix if self.bias is None else matrix[:, :, :-1]
        found = [weight.movedim(0, -1).reshape(*self.weight.shape, len(matrix))]
        if self.bias is not None:
            found.append(matrix[:, :, -1].mT)
        return found

    def _unroll(self, inputs: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.Embedding):
            return inputs.reshape(len(inputs), -1)
        if isinstance(module, nn.Conv1d):
            inputs = F.pad(inputs, _padding(module), mode=_mode(module)).unsqueeze(2)
            geometry: dict[str, Any] = {
                "kernel_size": (1, *module.kernel_size),
                "dilation": (1, *module.dilation),
                "stride": (1, *module.stride),
            }
            return F.unfold(inputs, **geometry).mT
        if isinstance(module, nn.Conv2d):
            inputs = F.pad(inputs, _padding(module), mode=_mode(module))
            return F.unfold(
                inputs, module.kernel_size, dilation=module.dilation, stride=module.stride
            ).mT
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])


def supported(module: nn.Module) -> bool:
    """Whether the gradient in this module's parameters is Σ g aᵀ as :class:`Layer` unrolls it."""
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return bool(module.groups == 1)
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return type(module) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@contextmanager
def recorded_layers(model: nn.Module, wanted: Sequence[Tensor]) -> Iterator[list[Layer]]:
    """Inside, forward passes fill the :class:`Layer` of every supported module of the model all of
    whose trained parameters are wanted and its own alone (not tied to another module's)."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    asked = set(map(id, wanted))
    layers: list[Layer] = []
    handles = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        usable = all(p.requires_grad and id(p) in asked and users[id(p)] == 1 for p in own)
        if not own or not supported(module) or not usable:
            continue
        layer = Layer(module, own[0], own[1] if len(own) > 1 else None)
        layers.append(layer)

        def record(_: nn.Module, inputs: Any, output: Tensor, layer: Layer = layer) -> None:
            layer.inputs.append(inputs[0])
            layer.outputs.append(output)

        handles.append(module.register_forward_hook(record))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _padding(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Left and right for every dimension, the last first, as F.pad wants it."""
    both: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            both += [total // 2, total - total // 2]
        elif module.padding == "valid":
            both += [0, 0]
        else:
            both += [int(module.padding[axis])] * 2
    return both


def _mode(module: nn.Conv1d | nn.Conv2d) -> str:
    return "constant" if module.padding_mode == "zeros" else module.padding_mode

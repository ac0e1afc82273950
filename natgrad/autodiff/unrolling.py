"""Inputs of a layer as the rows that its weight matrix multiplies."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def supported(module: nn.Module) -> bool:
    """Tell whether a module's gradient is Σ g aᵀ with the rows a of :func:`unroll`, all real."""
    if any(parameter.is_complex() for parameter in module.parameters(recurse=False)):
        return False
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return bool(module.groups == 1)
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return type(module) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def unroll(module: nn.Module, inputs: Tensor) -> Tensor:
    """Arrange a module's input as rows (N, R, d_in) over R positions; (N, R) for an Embedding.

    The rows of a convolution are its patches, padded as the module pads them.
    """
    if isinstance(module, nn.Embedding):
        return inputs.reshape(len(inputs), -1)
    if isinstance(module, nn.Conv1d):
        inputs = F.pad(inputs, _padding(module), mode=_padding_mode(module)).unsqueeze(2)
        geometry: dict[str, Any] = {
            "kernel_size": (1, *module.kernel_size),
            "dilation": (1, *module.dilation),
            "stride": (1, *module.stride),
        }
        return F.unfold(inputs, **geometry).mT
    if isinstance(module, nn.Conv2d):
        inputs = F.pad(inputs, _padding(module), mode=_padding_mode(module))
        return F.unfold(
            inputs, module.kernel_size, dilation=module.dilation, stride=module.stride
        ).mT
    return inputs.reshape(len(inputs), -1, inputs.shape[-1])


def _padding(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """List left and right padding, the last dimension first, as F.pad expects it."""
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


def _padding_mode(module: nn.Conv1d | nn.Conv2d) -> str:
    return "constant" if module.padding_mode == "zeros" else module.padding_mode

"""Network builders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


def mlp(
    inputs: int,
    hidden_sizes: Sequence[int],
    outputs: int,
    *,
    output_gain: float,
    generator: torch.Generator,
) -> nn.Sequential:
    """tanh network (B, inputs) -> (B, outputs) with orthogonal weights and zero biases.

    Hidden layers have gain √2; a small ``output_gain`` starts a policy near its mean action.
    All randomness is the generator's: the global one is neither read nor advanced.
    """
    layers: list[nn.Module] = []
    width = inputs
    for size in hidden_sizes:
        layers += [_linear(width, size, math.sqrt(2), generator), nn.Tanh()]
        width = size
    layers.append(_linear(width, outputs, output_gain, generator))
    return nn.Sequential(*layers)


def _linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    # skip_init: nn.Linear's own initialisation would draw from the global generator.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer

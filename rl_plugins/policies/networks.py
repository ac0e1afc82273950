"""Fully connected networks and CNNs, orthogonally initialised from a given generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_FOR_LARGE_KERNELS = 36
# For a policy's last layer: it starts near the middle of its actions, or near equal choices.
POLICY_OUTPUT_GAIN = 0.01


def mlp(
    inputs: int,
    hidden_sizes: Sequence[int],
    outputs: int,
    *,
    output_gain: float,
    generator: torch.Generator,
    activation: Callable[[], nn.Module] = nn.Tanh,
) -> nn.Sequential:
    """Network (B, inputs) -> (B, outputs) with orthogonal weights and zero biases.

    Parameters
    ----------
    inputs
        Width of the input.
    hidden_sizes
        Widths of the hidden layers, whose gain is √2; (): a linear map.
    outputs
        Width of the output.
    output_gain
        Gain of the last layer: small for a policy that starts near its mean action.
    generator
        Source of all randomness: torch's global generator is neither read nor advanced.
    activation
        Makes the module between two layers.
    """
    layers: list[nn.Module] = []
    sizes = [inputs, *hidden_sizes]
    for width, size in pairwise(sizes):
        layers += [_linear(width, size, math.sqrt(2), generator), activation()]
    layers.append(_linear(sizes[-1], outputs, output_gain, generator))
    return nn.Sequential(*layers)


def cnn(shape: tuple[int, int, int], generator: torch.Generator) -> nn.Sequential:
    """Network (B, C, H, W) -> (B, d) for images; ``[-1].features`` is d.

    From 36 pixels on the kernels of Mnih et al. 2015 (8, 4, 3 with strides 4, 2, 1); below that up
    to three of 3 × 3 with stride 2, as many as the image has room for.

    Parameters
    ----------
    shape
        (C, H, W).
    generator
        Source of all randomness.
    """
    channels, height, width = shape
    large = min(height, width) >= SMALLEST_FOR_LARGE_KERNELS
    kernels = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(32, 3, 2), (64, 3, 2)] * 2
    layers: list[nn.Module] = []
    for filters, size, stride in kernels[:3]:
        if min(height, width) < size:
            break
        layers += [_convolution(channels, filters, size, stride, generator), nn.ReLU()]
        channels = filters
        height, width = ((length - size) // stride + 1 for length in (height, width))
    return nn.Sequential(*layers, Flatten(channels * height * width))


class Flatten(nn.Module):
    """(B, …) -> (B, d).

    Parameters
    ----------
    features
        d.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """One row for each element of the batch.

        Parameters
        ----------
        x
            (B, …) with d entries each.
        """
        return x.reshape(-1, self.features)


class Perception(nn.Module):
    """A CNN for each image, whose outputs follow the vector into one network.

    Integer images are divided by 255 here and not before: a stored batch stays a quarter of the
    size.

    Parameters
    ----------
    vector
        Entries of the vector.
    images
        (C, H, W) of every image, by name.
    hidden_sizes, outputs, output_gain, generator, activation
        As for :func:`mlp`, which makes the network behind the images.
    """

    def __init__(
        self,
        vector: int,
        images: Mapping[str, tuple[int, int, int]],
        hidden_sizes: Sequence[int],
        outputs: int,
        *,
        output_gain: float,
        generator: torch.Generator,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        eyes = {name: cnn(shape, generator) for name, shape in images.items()}
        inputs = vector + sum(int(eye[-1].features) for eye in eyes.values())  # type: ignore[arg-type, misc]
        self.eyes = nn.ModuleDict(eyes)
        self.network = mlp(
            inputs,
            hidden_sizes,
            outputs,
            output_gain=output_gain,
            generator=generator,
            activation=activation,
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """The outputs, (B, outputs).

        Parameters
        ----------
        features
            {"vector": (B, d), name of an image: (B, C, H, W) uint8 or float, …}.
        """
        parts = [features["vector"]]
        for name, eye in self.eyes.items():
            image = features[name]
            scaled = image if image.is_floating_point() else image.float() / 255
            parts.append(eye(scaled))
        outputs: Tensor = self.network(torch.cat(parts, dim=-1))
        return outputs

    def __getitem__(self, index: int) -> nn.Module:
        """A layer behind the images: 0 reads the vector, −1 makes the outputs."""
        return self.network[index]


def feature_network(
    vector: int,
    images: Mapping[str, tuple[int, int, int]],
    hidden_sizes: Sequence[int],
    outputs: int,
    *,
    output_gain: float,
    generator: torch.Generator,
    activation: Callable[[], nn.Module],
    make_body: Callable[..., nn.Module] | None = None,
) -> Any:
    """An :func:`mlp` on a vector, or a :class:`Perception` where there are images.

    Parameters
    ----------
    vector
        Entries of the vector.
    images
        (C, H, W) of every image, by name; {}: none.
    hidden_sizes, outputs, output_gain, generator, activation
        As for :func:`mlp`.
    make_body
        Makes a network that takes the place of the CNNs, or comes before the :func:`mlp`: see
        :class:`rl_plugins.policies.body.Bodied`.
    """
    options: Any = {
        "output_gain": output_gain,
        "generator": generator,
        "activation": activation,
    }
    if make_body is not None:
        from rl_plugins.policies.body import Bodied

        return Bodied(vector, images, hidden_sizes, outputs, make_body=make_body, **options)
    if images:
        return Perception(vector, images, hidden_sizes, outputs, **options)
    return mlp(vector, hidden_sizes, outputs, **options)


def _linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    # skip_init: nn.Linear's own initialisation would draw from the global generator.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _convolution(
    inputs: int, outputs: int, size: int, stride: int, generator: torch.Generator
) -> nn.Conv2d:
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, size, stride)  # type: ignore[no-untyped-call]
    nn.init.orthogonal_(layer.weight, math.sqrt(2), generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

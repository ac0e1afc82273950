"""A network of the user's own in front of the layers that policies and critics end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_plugins.errors import UsageError, one_line
from rl_plugins.policies.networks import mlp

MakeBody = Callable[[int, Mapping[str, tuple[int, int, int]]], nn.Module]
"""(entries of the vector, (C, H, W) of every image by name) -> features (B, …) -> (B, d)."""


class Bodied(nn.Module):
    """A body, and an :func:`mlp` behind it.

    Parameters
    ----------
    vector
        Entries of the vector.
    images
        (C, H, W) of every image, by name; {}: none, and the body is given the vector itself.
    hidden_sizes, outputs, output_gain, generator, activation
        As for :func:`mlp`.
    make_body
        Makes the body. Its weights are drawn as torch's layers draw them, from a seed of the
        generator's.

    Raises
    ------
    UsageError
        Where the body does not map two observations to (2, d).
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
        activation: Callable[[], nn.Module],
        make_body: MakeBody,
    ) -> None:
        super().__init__()
        seed = int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = _made(make_body, vector, images)
        self.network = mlp(
            _width(self.body, vector, images),
            hidden_sizes,
            outputs,
            output_gain=output_gain,
            generator=generator,
            activation=activation,
        )

    def forward(self, features: Any) -> Tensor:
        """The outputs, (B, outputs).

        Parameters
        ----------
        features
            A vector (B, d), or {"vector": (B, d), name of an image: (B, C, H, W), …}.
        """
        outputs: Tensor = self.network(self.body(features))
        return outputs

    def __getitem__(self, index: int) -> nn.Module:
        """A layer behind the body: −1 makes the outputs."""
        return self.network[index]


def _made(
    make_body: MakeBody, vector: int, images: Mapping[str, tuple[int, int, int]]
) -> nn.Module:
    try:
        body = make_body(vector, images)
    except TypeError as error:
        raise UsageError(
            f"a body is made by a function of (width, images): {one_line(error)}"
        ) from error
    if not isinstance(body, nn.Module):
        raise UsageError(f"a body must be a torch.nn.Module, got {type(body).__name__}")
    return body


def _width(body: nn.Module, vector: int, images: Mapping[str, tuple[int, int, int]]) -> int:
    """Entries of the body's output, of two observations of zeros."""
    example: Any = torch.zeros(2, vector)
    if images:
        pictures = {name: torch.zeros(2, *shape) for name, shape in images.items()}
        example = {"vector": example, **pictures}
    try:
        with torch.no_grad():
            found = body(example)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        text = one_line(error)[:200]
        raise UsageError(f"the body fails on two observations of zeros: {text}") from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(f"the body must map two observations to (2, d), got {shape}")
    return found.shape[1]

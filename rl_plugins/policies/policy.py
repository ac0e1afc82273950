"""Policies: modules that map observations to a distribution over actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from rl_plugins.errors import UsageError
from rl_plugins.policies.networks import mlp

Policy = Callable[[Tensor], Distribution]
"""Observations (B, *shape) -> a distribution with batch shape (B,)."""

POLICY_OUTPUT_GAIN = 0.01
UNBOUNDED = 1e6


class CategoricalPolicy(nn.Module):
    """Observations (B, *shape) -> ``Categorical`` over the actions of a Discrete space."""

    def __init__(self, normaliser: nn.Module, network: nn.Sequential) -> None:
        super().__init__()
        self.normaliser, self.network = normaliser, network

    def forward(self, observations: Tensor) -> Distribution:
        features = self.normaliser(observations).reshape(len(observations), -1)
        return Categorical(logits=self.network(features), validate_args=False)


class GaussianPolicy(nn.Module):
    """Observations (B, *shape) -> diagonal normal (B,), d-dimensional, σ free of the observation.

    One unit of action is half the range of a bounded dimension: see :func:`to_environment`.
    """

    def __init__(
        self, normaliser: nn.Module, network: nn.Sequential, dimensions: int, initial_log_std: float
    ) -> None:
        super().__init__()
        self.normaliser, self.network = normaliser, network
        self.log_std = nn.Parameter(torch.full((dimensions,), initial_log_std))

    def forward(self, observations: Tensor) -> Distribution:
        mean = self.network(self.normaliser(observations).reshape(len(observations), -1))
        scale = self.log_std.exp().expand_as(mean)
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def build_policy(
    observation_space: Space[Any],
    action_space: Space[Any],
    normaliser: nn.Module,
    *,
    hidden_sizes: Sequence[int],
    initial_log_std: float,
    generator: torch.Generator,
) -> CategoricalPolicy | GaussianPolicy:
    """The policy for a pair of single-environment spaces.

    Raises :class:`UsageError` for spaces other than Box observations and Box or Discrete actions.
    """
    inputs = int(np.prod(observation_shape(observation_space)))

    def network(outputs: int) -> nn.Sequential:
        return mlp(
            inputs, hidden_sizes, outputs, output_gain=POLICY_OUTPUT_GAIN, generator=generator
        )

    if isinstance(action_space, spaces.Discrete):
        return CategoricalPolicy(normaliser, network(int(action_space.n)))
    dimensions = _box_dimensions(action_space)
    return GaussianPolicy(normaliser, network(dimensions), dimensions, initial_log_std)


def observation_shape(space: Space[Any]) -> tuple[int, ...]:
    """Shape of one observation. Raises :class:`UsageError` unless the space is a Box."""
    if not isinstance(space, spaces.Box):
        raise UsageError(
            f"observations of type {type(space).__name__} are not supported, only Box; "
            "wrap the task with gymnasium.wrappers.FlattenObservation"
        )
    return space.shape


def to_environment(space: Space[Any]) -> Callable[[Tensor], NDArray[Any]]:
    """The map from policy actions (B, ...) to what an environment with this action space takes.

    Discrete: shifted by ``start``. Box: each bounded dimension is clipped to ±1 and stretched to
    its bounds, so that 0 is the middle and exploration noise has the scale of the range, whatever
    the bounds are; an unbounded dimension passes through, a half-bounded one is clipped.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda actions: actions.numpy() + start
    _box_dimensions(space)
    assert isinstance(space, spaces.Box)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    # Bounds such as ±3e38 are none that an action could be stretched to.
    bounded = (low > -UNBOUNDED) & (high < UNBOUNDED)
    least, most = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    middle, half_range = (least + most) / 2, (most - least) / 2

    def stretch(actions: Tensor) -> NDArray[Any]:
        wanted = actions.numpy().reshape(-1, *space.shape) * half_range + middle
        # Two ufuncs: np.clip costs three times as much on arrays this small.
        actual: NDArray[Any] = np.minimum(np.maximum(wanted, low), high).astype(space.dtype)
        return actual

    return stretch


def _box_dimensions(space: Space[Any]) -> int:
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UsageError(
            f"actions of type {space} are not supported, only Discrete and Box of floats; "
            "see `rl-plugins train --help`"
        )
    return int(np.prod(space.shape))

"""The action-value function Q(s, a) of the off-policy family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl_plugins.policies import Features, Perception
from rl_plugins.policies.observations import FeatureBatch


class ActionValue(nn.Module):
    """Q(s, a) of observations and actions.

    Parameters
    ----------
    features
        Observations -> the inputs of the network.
    network
        Features, with the action behind their vector -> (B, 1).
    """

    def __init__(self, features: Features, network: nn.Sequential | Perception) -> None:
        super().__init__()
        self.features, self.network = features, network

    def forward(self, observations: Any, actions: Tensor) -> Tensor:
        """The values, (B,).

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        actions
            (B, d).
        """
        inputs: FeatureBatch = self.features(observations)
        if isinstance(inputs, Tensor):
            joined: FeatureBatch = torch.cat([inputs, actions], dim=1)
        else:
            joined = {**inputs, "vector": torch.cat([inputs["vector"], actions], dim=1)}
        values: Tensor = self.network(joined).squeeze(-1)
        return values


def action_values(
    critic: Callable[[Any, Tensor], Tensor], observations: Any, actions: Tensor, rewards: Tensor
) -> Tensor:
    """critic(observations, actions), with a check of its shape.

    Parameters
    ----------
    critic
        Q: (observations, actions) -> (B,).
    observations
        (B, …).
    actions
        (B, d).
    rewards
        (B,), or anything else of the shape that the values must have.

    Raises
    ------
    ValueError
        Where the shapes differ: broadcasting would silently make a (B, B) matrix of the values,
        and a wrong loss.
    """
    values = critic(observations, actions)
    if values.shape != rewards.shape:
        raise ValueError(
            f"the critic's values have shape {tuple(values.shape)}, the rewards "
            f"{tuple(rewards.shape)}; both must be (B,): let it end with .squeeze(-1)"
        )
    return values

"""The action-value function Q(s, a) of the off-policy family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl_plugins.policies import Features, Perception
from rl_plugins.policies.observations import FeatureBatch


class ActionValue(nn.Module):
    """Q(s, a), (B,), of observations (B, …) and actions (B, d)."""

    def __init__(self, features: Features, network: nn.Sequential | Perception) -> None:
        super().__init__()
        self.features, self.network = features, network

    def forward(self, observations: Any, actions: Tensor) -> Tensor:
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
    """critic(observations, actions). Raises ``ValueError`` unless it is shaped like the rewards
    (B,): broadcasting would make a (B, B) matrix of it, and a wrong loss, in silence."""
    values = critic(observations, actions)
    if values.shape != rewards.shape:
        raise ValueError(
            f"the critic's values have shape {tuple(values.shape)}, the rewards "
            f"{tuple(rewards.shape)}; both must be (B,): let it end with .squeeze(-1)"
        )
    return values

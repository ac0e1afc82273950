"""REINFORCE with reward to go and a baseline, as a plugin from outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from rl_plugins import gae
from rl_plugins.data import Rollout
from rl_plugins.policies import Sampling, StochasticPolicy, mlp
from rl_plugins.policies.spaces import action_head, action_map, observation_features


@dataclass(frozen=True)
class Config:
    """Settings, which become options of the command line."""

    learning_rate: float = 0.01
    """Adam's learning rate."""
    discount: float = 0.99
    """γ."""
    hidden_sizes: tuple[int, ...] = field(default_factory=lambda: (32,))
    """Widths of the hidden layers."""
    label: str | None = None
    """Free text."""


@dataclass(frozen=True)
class Report:
    loss: float

    @property
    def summary(self) -> str:
        return f"loss {self.loss:.3f}"


class VanillaPolicyGradient:
    collects: ClassVar[Literal["rollouts", "transitions"]] = "rollouts"
    Config: ClassVar[type[Config]] = Config

    def __init__(self, policy: StochasticPolicy, to_environment: Any, config: Config) -> None:
        self.policy, self.to_environment, self.config = policy, to_environment, config
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)

    @classmethod
    def build(
        cls,
        observation_space: Any,
        action_space: Any,
        config: Config,
        generator: torch.Generator,
    ) -> VanillaPolicyGradient:
        features = observation_features(observation_space, normalise=False)
        head = action_head(action_space, initial_log_std=-0.5)
        network = mlp(
            features.width, config.hidden_sizes, head.outputs, output_gain=0.01, generator=generator
        )
        return cls(StochasticPolicy(features, network, head), action_map(action_space), config)

    def behaviour(self, environments: int, *, explore: bool) -> Sampling:
        return Sampling(self.policy, self.to_environment, explore=explore)

    def update(self, batch: Rollout) -> Report:
        nothing = torch.zeros_like(batch.rewards)
        to_go = gae(
            batch.rewards, nothing, nothing, batch.terminated, batch.truncated,
            discount=self.config.discount, decay=1.0,
        )  # fmt: skip
        advantages = (to_go - to_go.mean()).flatten()
        pi = self.policy(batch.observations.flatten(0, 1))
        loss = -(pi.log_prob(batch.actions.flatten(0, 1)) * advantages).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Report(float(loss.detach()))

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])

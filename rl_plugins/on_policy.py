"""What NPG, TRPO, PPO and A2C share: the way from a rollout to a step, and its state."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from rl_plugins.actor_critic import ActorCritic
from rl_plugins.data import Rollout
from rl_plugins.plugin import configure
from rl_plugins.policies import Behaviour
from rl_plugins.reports import StepReport

if TYPE_CHECKING:
    from gymnasium import Space


class OnPolicyPlugin:
    """An algorithm that learns from rollouts of its own policy: subclasses say how it steps."""

    collects: ClassVar[Literal["rollouts", "transitions"]] = "rollouts"
    Settings: ClassVar[type[Any]]
    Config: ClassVar[type[Any]]
    counters: ClassVar[tuple[str, ...]] = ()
    """Names of attributes, plain numbers, that are saved with the policy and the optimizers."""
    config: Any

    def __init__(
        self, policy: nn.Module, *, generator: torch.Generator | None = None, **settings: Any
    ) -> None:
        """``generator`` shuffles minibatches, where there are any; ``settings`` are the fields of
        ``Settings``."""
        config = configure(self.Settings, settings)
        self._set_up(policy, config, generator or torch.Generator().manual_seed(0), None)

    def _set_up(
        self,
        policy: nn.Module,
        config: Any,
        generator: torch.Generator,
        actor_critic: ActorCritic | None,
    ) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        self._actor_critic = actor_critic
        self.optimizers: list[torch.optim.Optimizer] = []

    @classmethod
    def build(
        cls: type[PluginType],
        observation_space: Space[Any],
        action_space: Space[Any],
        config: Any,
        generator: torch.Generator,
    ) -> PluginType:
        """The algorithm with the policy, critic and normaliser for a task's spaces.

        Raises :class:`UsageError` for spaces that are not supported.
        """
        actor_critic = ActorCritic(observation_space, action_space, config, generator)
        plugin = cls.__new__(cls)
        plugin._set_up(actor_critic.policy, config, generator, actor_critic)
        return plugin

    def parameters(self) -> list[Tensor]:
        """The policy's parameters that are trained."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        return self._require_critic().behaviour(environments, explore=explore)

    def update(self, batch: Rollout) -> StepReport:
        """One iteration from a rollout: advantages, the step, the fit of the critic."""
        actor_critic = self._require_critic()
        learning = actor_critic.learning_batch(batch)
        report = self.step(
            learning.observations, learning.actions, learning.advantages, learning.mask
        )
        actor_critic.finish_update(learning)
        return replace(report, explained_variance=learning.explained_variance)

    def step(
        self, observations: Any, actions: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> StepReport:
        """One step of the policy from states, actions and advantages."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything but the generator's state, which is its owner's to keep."""
        state: dict[str, Any] = {name: getattr(self, name) for name in self.counters}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        if self._actor_critic is None:
            return {**state, "policy": self.policy.state_dict()}
        regression = self._actor_critic.critic.regression.state_dict()
        return {**state, "agent": self._actor_critic.state_dict(), "regression": regression}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.counters:
            setattr(self, name, state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self._actor_critic is None:
            self.policy.load_state_dict(state["policy"])
            return
        self._actor_critic.load_state_dict(state["agent"])
        self._actor_critic.critic.regression.load_state_dict(state["regression"])

    def _require_critic(self) -> ActorCritic:
        if self._actor_critic is None:
            name = type(self).__name__
            raise ValueError(
                f"this {name} was made from a policy alone, without a critic: call "
                f"step(observations, actions, advantages), or make it by {name}.build(...)"
            )
        return self._actor_critic


PluginType = TypeVar("PluginType", bound=OnPolicyPlugin)

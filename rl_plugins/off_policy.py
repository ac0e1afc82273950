"""What DDPG and TD3 share: networks and their targets, the way from transitions to a report."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from natgrad.flat import flatten
from rl_plugins.critics import ActionValue
from rl_plugins.data import Rollout, Transitions
from rl_plugins.deterministic_gradient import ActorStep
from rl_plugins.experience import Experience
from rl_plugins.first_order import Snapshot
from rl_plugins.optimizers import make_optimizer
from rl_plugins.plugin import configure
from rl_plugins.policies import (
    POLICY_OUTPUT_GAIN,
    Behaviour,
    DeterministicPolicy,
    Exploring,
    feature_network,
)
from rl_plugins.reports import OffPolicyReport, StepStatus

if TYPE_CHECKING:
    from gymnasium import Space
_STATEFUL = (
    "policy", "critics", "target_policy", "target_critics", "actor_optimizer", "critic_optimizer",
)  # fmt: skip


class OffPolicyPlugin:
    """An algorithm that learns from stored transitions: subclasses say how it steps.

    ``actor(observations)`` are actions (B, d), in [−1, 1] for policies that :meth:`build` makes;
    ``critics`` map (observations, actions) to values (B,).
    """

    collects: ClassVar[Literal["rollouts", "transitions"]] = "transitions"
    Settings: ClassVar[type[Any]]
    Config: ClassVar[type[Any]]
    critic_count: ClassVar[int]
    config: Any

    def __init__(
        self,
        policy: nn.Module,
        *critics: nn.Module,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        """``generator`` draws minibatches and smoothing noise; ``settings`` are the fields of
        ``Settings``."""
        if len(critics) != self.critic_count:
            raise TypeError(
                f"{type(self).__name__} takes {self.critic_count} critics after the policy, "
                f"got {len(critics)}"
            )
        config = configure(self.Settings, settings)
        self._set_up(policy, critics, config, generator or torch.Generator().manual_seed(0))

    def _set_up(
        self,
        policy: nn.Module,
        critics: Sequence[nn.Module],
        config: Any,
        generator: torch.Generator,
    ) -> None:
        self.config, self.generator = config, generator
        self.policy, self.critics = policy, nn.ModuleList(critics)
        self.target_policy = copy.deepcopy(policy)
        self.target_critics = copy.deepcopy(self.critics)
        self.actor_parameters = [p for p in policy.parameters() if p.requires_grad]
        self.critic_parameters = [p for p in self.critics.parameters() if p.requires_grad]
        self._sources: list[Tensor] = [*policy.parameters(), *self.critics.parameters()]
        self._targets: list[Tensor] = [
            *self.target_policy.parameters(),
            *self.target_critics.parameters(),
        ]
        self._buffers: list[Tensor] = [*policy.buffers(), *self.critics.buffers()]
        self._target_buffers: list[Tensor] = [
            *self.target_policy.buffers(),
            *self.target_critics.buffers(),
        ]
        for target in self._targets:
            target.requires_grad_(False)
        self.actor_optimizer = make_optimizer(
            config.optimizer, self.actor_parameters, config.actor_learning_rate
        )
        self.critic_optimizer = make_optimizer(
            config.optimizer, self.critic_parameters, config.critic_learning_rate
        )
        self.updates = 0
        self._experience: Experience | None = None

    @classmethod
    def build(
        cls: type[PluginType],
        observation_space: Space[Any],
        action_space: Space[Any],
        config: Any,
        generator: torch.Generator,
    ) -> PluginType:
        """The algorithm with the networks and the replay buffer for a task's spaces.

        Raises :class:`UsageError` for an action space that is no Box with bounds.
        """
        from rl_plugins.policies.spaces import (
            action_map,
            bounded_dimensions,
            observation_features,
        )

        dimensions = bounded_dimensions(action_space)
        features = observation_features(observation_space, normalise=False)
        policy = DeterministicPolicy(
            features,
            feature_network(
                features.width,
                features.images,
                config.hidden_sizes,
                dimensions,
                output_gain=POLICY_OUTPUT_GAIN,
                generator=generator,
                activation=nn.ReLU,
            ),
        )
        critics = [
            ActionValue(
                features,
                feature_network(
                    features.width + dimensions, features.images, config.hidden_sizes, 1,
                    output_gain=1.0, generator=generator, activation=nn.ReLU,
                ),
            )
            for _ in range(cls.critic_count)
        ]  # fmt: skip
        plugin = cls.__new__(cls)
        plugin._set_up(policy, critics, config, generator)
        plugin._experience = Experience(config, action_map(action_space))
        return plugin

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        """μ(s), with noise if it is to explore."""
        experience = self._require_experience()
        return Exploring(
            self.policy,
            experience.to_environment,
            experience.noise() if explore else None,
            experience.is_warming_up,
        )

    def update(self, batch: Rollout) -> OffPolicyReport:
        """Store the rollout, then take as many gradient steps as its steps are worth."""
        return self._learn(self._require_experience().draw(batch, self.generator))

    def step(
        self,
        observations: Any,
        actions: Tensor,
        rewards: Tensor,
        next_observations: Any,
        terminated: Tensor,
    ) -> OffPolicyReport:
        """One gradient step from B transitions of any policy: actions (B, d), rewards (B,),
        terminated (B,) bool, False where a time limit ended the episode; no buffer needed.

        All networks and optimizers stay bitwise what they were where anything is NaN or infinite.
        Raises ``ValueError`` where the shapes do not fit.
        """
        batch = Transitions(observations, actions, rewards, next_observations, terminated)
        if not len(rewards):
            raise ValueError("the batch is empty: a step needs at least one transition")
        if rewards.ndim != 1 or terminated.shape != rewards.shape or len(actions) != len(rewards):
            raise ValueError(
                f"rewards and terminated must be (B,), actions (B, d); got {tuple(rewards.shape)}, "
                f"{tuple(terminated.shape)} and {tuple(actions.shape)}"
            )
        if terminated.dtype != torch.bool:
            raise ValueError(f"terminated must be bool, got {terminated.dtype}")
        return self._learn([batch])

    def gradient_step(self, batch: Transitions) -> tuple[Tensor, ActorStep | None]:
        """One minibatch: the critic's loss, and what the actor did, None where it waited."""
        raise NotImplementedError

    @torch.no_grad()
    def follow(self) -> None:
        """θ′ ← (1 − τ) θ′ + τ θ for the target networks; buffers, such as the statistics of a
        normaliser, are copied."""
        torch._foreach_lerp_(self._targets, self._sources, self.config.target_rate)
        for target, source in zip(self._target_buffers, self._buffers, strict=True):
            target.copy_(source)

    def _learn(self, batches: Iterable[Transitions]) -> OffPolicyReport:
        buffers, first = [*self._buffers, *self._target_buffers], self.updates
        statistics = [buffer.clone() for buffer in buffers]
        losses: list[Tensor] = []
        values: list[Tensor] = []
        change = math.nan
        optimizers = (self.actor_optimizer, self.critic_optimizer)
        with Snapshot([*self._sources, *self._targets], *optimizers) as before:
            for batch in batches:
                loss, actor = self.gradient_step(batch)
                losses.append(loss)
                if actor is not None:
                    values.append(actor.value)
                    change = actor.change
                self.updates += 1
        if not losses:
            return OffPolicyReport(status=StepStatus.WAITING, updates=0)
        loss = torch.stack(losses).mean()
        theta = flatten([*self._sources, *self._targets])
        sound = bool(torch.isfinite(loss)) and bool(torch.isfinite(theta).all())
        if not sound:
            before.restore()
            for buffer, old in zip(buffers, statistics, strict=True):
                buffer.copy_(old)
            self.updates = first
        return OffPolicyReport(
            status=StepStatus.TAKEN if sound else StepStatus.NONFINITE,
            updates=len(losses),
            critic_loss=float(loss),
            action_value=float(torch.stack(values).mean()) if values else math.nan,
            action_change=change,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything but the generator's state, which is its owner's to keep."""
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        state["updates"] = self.updates
        if (experience := self._experience) is not None:
            state["seen"], state["owed"] = experience.seen, experience.owed
            state["replay"] = experience.buffer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.updates = state["updates"]
        if (experience := self._experience) is not None:
            experience.seen, experience.owed = state["seen"], state["owed"]
            experience.buffer.load_state_dict(state["replay"])

    def _require_experience(self) -> Experience:
        if self._experience is None:
            name = type(self).__name__
            raise ValueError(
                f"this {name} was made from networks alone, without a replay buffer: call "
                f"step(observations, actions, …), or make it by {name}.build(...)"
            )
        return self._experience


PluginType = TypeVar("PluginType", bound=OffPolicyPlugin)

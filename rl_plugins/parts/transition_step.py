"""Off-policy steps: the networks, targets, optimizers and state that DDPG and TD3 share."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from natgrad.flat import flatten
from rl_plugins.data import Transitions
from rl_plugins.parts.actor_step import ActorStep, DeterministicGradientSettings
from rl_plugins.parts.first_order import Snapshot
from rl_plugins.parts.optimizers import make_optimizer
from rl_plugins.reports import OffPolicyReport, StepStatus
from rl_plugins.settings import configure

SettingsType = TypeVar("SettingsType", bound=DeterministicGradientSettings)
_STATEFUL = (
    "policy",
    "critics",
    "target_policy",
    "target_critics",
    "actor_optimizer",
    "critic_optimizer",
)


class TransitionStep(Generic[SettingsType]):
    """A step of a policy and its critics from transitions. Subclasses define
    :meth:`gradient_step`.

    Parameters
    ----------
    policy
        A module that maps observations to actions (B, d); TD3's ``action_limit`` is their range.
    *critics
        Modules that map (observations, actions) to values (B,): one for DDPG, two for TD3.
    generator
        Draws smoothing noise; the default is seeded with 0.
    **settings
        Fields of ``Settings``; an unknown name raises :class:`rl_plugins.UsageError`.
    """

    Settings: type[SettingsType]
    critic_count: ClassVar[int]

    def __init__(
        self,
        policy: nn.Module,
        *critics: nn.Module,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        if len(critics) != self.critic_count:
            raise TypeError(
                f"{type(self).__name__} takes {self.critic_count} critics after the policy, "
                f"got {len(critics)}"
            )
        self.settings = configure(self.Settings, settings)
        self.generator = generator or torch.Generator().manual_seed(0)
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
            self.settings.optimizer, self.actor_parameters, self.settings.actor_learning_rate
        )
        self.critic_optimizer = make_optimizer(
            self.settings.optimizer, self.critic_parameters, self.settings.critic_learning_rate
        )
        self.updates = 0

    def step(
        self,
        observations: Any,
        actions: Tensor,
        rewards: Tensor,
        next_observations: Any,
        terminated: Tensor,
    ) -> OffPolicyReport:
        """One gradient step from B transitions of any policy; no buffer needed.

        Networks and optimizers stay as they were, bit for bit, where anything is NaN or infinite.

        Parameters
        ----------
        observations
            B states, in the form that the policy takes.
        actions
            The actions taken there, (B, d).
        rewards
            (B,).
        next_observations
            The states that followed; the true last one where an episode ended.
        terminated
            (B,) bool, False where a time limit ended the episode.

        Raises
        ------
        ValueError
            Where the shapes do not fit.
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
        return self.learn([batch])

    def gradient_step(self, batch: Transitions) -> tuple[Tensor, ActorStep | None]:
        """One minibatch.

        Parameters
        ----------
        batch
            B transitions.

        Returns
        -------
        tuple
            The critic's loss, 0-d, and the actor's step, None where it waited.
        """
        raise NotImplementedError

    @torch.no_grad()
    def follow(self) -> None:
        """θ′ ← (1 − τ) θ′ + τ θ for the target networks; buffers, such as a normaliser's
        statistics, are copied."""
        torch._foreach_lerp_(self._targets, self._sources, self.settings.target_rate)
        for target, source in zip(self._target_buffers, self._buffers, strict=True):
            target.copy_(source)

    def learn(self, batches: Iterable[Transitions]) -> OffPolicyReport:
        """One gradient step for each minibatch.

        Networks and optimizers stay as they were, bit for bit, where a loss or a parameter is NaN
        or infinite at the end.

        Parameters
        ----------
        batches
            Minibatches, drawn as they are needed.
        """
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
        """All state but the generator's, which its owner saves."""
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        return {**state, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.updates = state["updates"]

"""Twin delayed deep deterministic policy gradient (Fujimoto, van Hoof & Meger 2018).

Each update:

    1. act by μ(s) + noise, store the transitions                    agents/off_policy.py
    2. for every step taken, draw a minibatch (s, a, r, s′):
       a′ = μ′(s′) + clipped noise, within the bounds                smoothing
       y = r + γ min(Q₁′(s′, a′), Q₂′(s′, a′)), without the last term where s′ is terminal
       Q₁ and Q₂ move along −∇ E[(Q₁(s, a) − y)² + (Q₂(s, a) − y)²]
       every d-th time: μ moves along ∇ E[Q₁(s, μ(s))]               parts/actor_step.py
                        Q′ and μ′ follow Q and μ by a part τ         parts/transition_step.py

DDPG with three changes against values that are too high: two critics and the lower of their
targets, an actor that waits for its critics, targets smoothed over neighbouring actions. Different
from the paper as DDPG is: see ddpg.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_plugins.critics.action_value import action_values
from rl_plugins.data import Transitions
from rl_plugins.parts.actor_step import (
    ActorStep,
    DeterministicGradientSettings,
    actor_step,
)
from rl_plugins.parts.first_order import descend
from rl_plugins.parts.transition_step import TransitionStep
from rl_plugins.settings import require_least


@dataclass(frozen=True)
class TD3Settings(DeterministicGradientSettings):
    """Settings of TD3's gradient steps."""

    policy_delay: int = 2
    """d: critic steps for every step of the actor and of the targets; more where Q is noisy."""
    smoothing: float = 0.2
    """Standard deviation of the noise on the targets' actions, in half ranges; 0: none."""
    smoothing_clip: float = 0.5
    """Most that the noise changes a target's action, in half ranges."""
    action_limit: float = 1.0
    """Actions of the targets stay within ± this. 1 is the range of policies built for a task;
    infinity is for one's own policy without bounds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, 1, "policy_delay")
        require_least(self, 0, "smoothing", "smoothing_clip")
        if not self.action_limit > 0:
            raise ValueError(f"action_limit must be above 0, got {self.action_limit}")


class TD3(TransitionStep[TD3Settings]):
    """TD3 for any policy observations -> actions (B, d) and any two critics (observations, actions)
    -> values (B,).

    ``TD3(policy, critic, other).step(observations, actions, rewards, next_observations,
    terminated)`` is one gradient step from one's own transitions; the settings are the fields of
    :class:`TD3Settings`. The arguments are those of
    :class:`~rl_plugins.parts.transition_step.TransitionStep`.
    """

    Settings = TD3Settings
    critic_count = 2

    def targets(self, batch: Transitions) -> Tensor:
        """y = r + γ min over both target critics at the smoothed action, (B,), and r where s′ is
        terminal; no gradient.

        Parameters
        ----------
        batch
            B transitions.
        """
        settings = self.settings
        with torch.no_grad():
            s_next, r = batch.next_observations, batch.rewards
            actions = self.target_policy(s_next)
            noise = torch.randn(actions.shape, generator=self.generator, dtype=actions.dtype)
            clip, limit = settings.smoothing_clip, settings.action_limit
            noise = (settings.smoothing * noise).clamp(-clip, clip)
            actions = (actions + noise).clamp(-limit, limit)
            value = torch.minimum(
                *[action_values(Q, s_next, actions, r) for Q in self.target_critics]
            )
            return r + settings.discount * value.where(~batch.terminated, 0.0)

    def gradient_step(self, batch: Transitions) -> tuple[Tensor, ActorStep | None]:
        """One minibatch: the critics, and every d-th time the actor and the targets.

        Parameters
        ----------
        batch
            B transitions.

        Returns
        -------
        tuple
            The mean of the critics' losses, 0-d, and the actor's step, None where it waited.
        """
        y = self.targets(batch)
        values = [action_values(Q, batch.observations, batch.actions, y) for Q in self.critics]
        loss = (torch.stack(values) - y).square().mean(dim=1).sum()
        descend(loss, self.critic_parameters, self.critic_optimizer)
        actor = None
        if self.updates % self.settings.policy_delay == self.settings.policy_delay - 1:
            actor = actor_step(
                self.policy,
                self.actor_parameters,
                self.critics[0],
                batch.observations,
                self.actor_optimizer,
                self.settings,
            )
            self.follow()
        return loss.detach() / 2, actor

"""Deep deterministic policy gradient (Lillicrap et al. 2016).

Each update:

    1. act by μ(s) + noise, store the transitions                    agents/off_policy.py
    2. for every step taken, draw a minibatch (s, a, r, s′):
       y = r + γ Q′(s′, μ′(s′)), without the last term where s′ is terminal
       Q moves along −∇ E[(Q(s, a) − y)²]
       μ moves along ∇ E[Q(s, μ(s))]                                 parts/actor_step.py
       Q′ and μ′ follow Q and μ by a part τ                          parts/transition_step.py

Different from the paper and from some implementations: a time limit is not the end (the bootstrap
stays, from the true last observation); the target y carries no gradient; actions are stretched to
the bounds of the task; noise is Gaussian unless asked otherwise, and does not decay; no weight
decay, no batch normalisation. The actor may take natural steps instead, bounded in action space.
"""

from __future__ import annotations

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


class DDPG(TransitionStep[DeterministicGradientSettings]):
    """DDPG for any policy observations -> actions (B, d) and any critic (observations, actions)
    -> values (B,).

    ``DDPG(policy, critic).step(observations, actions, rewards, next_observations, terminated)`` is
    one gradient step from one's own transitions; the settings are the fields of
    :class:`DeterministicGradientSettings`. The arguments are those of
    :class:`~rl_plugins.parts.transition_step.TransitionStep`.
    """

    Settings = DeterministicGradientSettings
    critic_count = 1

    def targets(self, batch: Transitions) -> Tensor:
        """y = r + γ Q′(s′, μ′(s′)), (B,), and r where s′ is terminal; no gradient.

        Parameters
        ----------
        batch
            B transitions.
        """
        with torch.no_grad():
            s_next, r = batch.next_observations, batch.rewards
            value = action_values(self.target_critics[0], s_next, self.target_policy(s_next), r)
            return r + self.settings.discount * value.where(~batch.terminated, 0.0)

    def gradient_step(self, batch: Transitions) -> tuple[Tensor, ActorStep]:
        """One minibatch: the critic, the actor, then the targets.

        Parameters
        ----------
        batch
            B transitions.

        Returns
        -------
        tuple
            The critic's loss, 0-d, and the actor's step.
        """
        (critic,) = self.critics
        value = action_values(critic, batch.observations, batch.actions, batch.rewards)
        loss = (value - self.targets(batch)).square().mean()
        descend(loss, self.critic_parameters, self.critic_optimizer)
        actor = actor_step(
            self.policy,
            self.actor_parameters,
            critic,
            batch.observations,
            self.actor_optimizer,
            self.settings,
        )
        self.follow()
        return loss.detach(), actor

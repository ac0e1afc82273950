"""A rollout, its advantages, and the batch that an on-policy update learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import optree
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments under one fixed behaviour.

    Attributes
    ----------
    observations
        (T, N, …) in the structure of the observation space, as the policy saw them.
    actions
        (T, N, …) as the policy drew them, in its own units.
    rewards
        (T, N) as the environment gave them.
    terminated, truncated
        (T, N) bool, never both.
    starts
        (T, N) bool: the observations that begin an episode.
    valid
        (T, N) bool, False for steps that only reset an environment (NEXT_STEP autoreset): no
        action was taken there, and nothing is to be learnt.
    next_observations
        (N, …), after the last step.
    final_observations
        (K, …), the true last observations of the K = truncated.sum() truncated steps, in row-major
        order.
    episode_returns, episode_lengths
        The episodes that ended here, in the order of their ends.
    memories
        (T, N, h), the memory of a recurrent policy *before* each step; None for others.
    next_memory, final_memories
        The memory that goes with ``next_observations`` and ``final_observations``.
    """

    observations: Any
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    starts: Tensor
    valid: Tensor
    next_observations: Any
    final_observations: Any
    episode_returns: list[float]
    episode_lengths: list[int]
    memories: Tensor | None = None
    next_memory: Tensor | None = None
    final_memories: Tensor | None = None

    @property
    def steps(self) -> int:
        """Environment steps, all environments together."""
        return int(self.valid.sum())

    def next_values(self, value: Callable[[Any, Tensor | None], Tensor], values: Tensor) -> Tensor:
        """V of the observation that each step led to, (T, N).

        Parameters
        ----------
        value
            V: (observations, memory) -> (B,). It is called only for the last step and for the
            truncated ones.
        values
            (T, N), V of ``observations``.

        Returns
        -------
        Tensor
            Terminated steps hold V of the reset, which :func:`gae` ignores.
        """
        last = value(self.next_observations, self.next_memory).unsqueeze(0)
        following = torch.cat([values[1:], last])
        if bool(self.truncated.any()):
            following[self.truncated] = value(self.final_observations, self.final_memories)
        return following


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float,
    decay: float,
) -> Tensor:
    """Generalised advantages Â_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) − V(s_t).

    The sum never runs over the end of an episode. Targets for the critic are ``gae(...) + values``.

    Parameters
    ----------
    rewards
        (T, N).
    values
        (T, N), V of the observations.
    next_values
        (T, N), V of the observation that the step itself led to: where an episode ended, that of
        its true last observation, not of the reset that followed.
    terminated
        (T, N) bool. These steps bootstrap 0, and ``next_values`` may be anything there, even NaN.
    truncated
        (T, N) bool. These steps bootstrap ``next_values``; one that is both counts as terminated.
    discount
        γ in [0, 1].
    decay
        λ in [0, 1]: 0 is the one-step error, 1 the whole return; less has less variance and more
        bias.

    Returns
    -------
    Tensor
        (T, N).

    Raises
    ------
    ValueError
        Where shapes differ, or γ or λ lies outside [0, 1].

    Notes
    -----
    Source: Schulman et al., "High-dimensional continuous control using generalized advantage
    estimation", 2016, equation 16.

    Examples
    --------
    >>> one = torch.ones(2, 1)
    >>> never = torch.zeros(2, 1, dtype=torch.bool)
    >>> gae(one, 0 * one, 0 * one, never, never, discount=1.0, decay=0.5).squeeze().tolist()
    [1.5, 1.0]
    """
    shapes = {tuple(t.shape) for t in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise ValueError(f"expected five tensors of one shape (T, N), got shapes {sorted(shapes)}")
    if terminated.dtype != torch.bool or truncated.dtype != torch.bool:
        raise ValueError(
            f"terminated and truncated must be bool, got {terminated.dtype} and {truncated.dtype}"
        )
    for name, number in (("discount", discount), ("decay", decay)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {number}")
    bootstrap = torch.where(terminated, torch.zeros_like(next_values), next_values)
    errors = rewards + discount * bootstrap - values
    ended = terminated | truncated
    advantages = torch.empty_like(errors)
    following = errors.new_zeros(errors.shape[1])
    for t in reversed(range(len(errors))):
        # A choice, not a product with 0: a NaN behind the end of an episode stays behind it.
        going_on = torch.add(errors[t], following, alpha=discount * decay)
        following = torch.where(ended[t], errors[t], going_on)
        advantages[t] = following
    return advantages


def standardise(advantages: Tensor) -> Tensor:
    """Zero mean and unit standard deviation; only centred where all are equal.

    Parameters
    ----------
    advantages
        (B,).
    """
    centred = advantages - advantages.mean()
    deviation = centred.double().square().mean().sqrt().to(centred.dtype)
    # Below rounding of the mean the advantages are equal: their deviation is that rounding.
    noise = 4 * torch.finfo(centred.dtype).eps * advantages.abs().amax()
    return centred / torch.where(deviation > noise, deviation, torch.ones_like(deviation))


@dataclass(frozen=True)
class LearningBatch:
    """The B valid steps of a rollout, or N sequences of T, with advantages and targets.

    Attributes
    ----------
    observations
        (B, …) for the policy; for a recurrent one, :data:`rl_plugins.policies.policy.Sequences`.
    actions
        (B, …) or (N, T, …).
    advantages
        (B,) or (N, T), standardised.
    mask
        (N, T) bool: the steps that count; None: all.
    states
        (B, …) for the critic.
    memories
        (B, h) for the critic beside a recurrent policy; None for others.
    targets
        (B,) of the critic, not standardised.
    explained_variance
        How well the critic predicted the targets: 1 perfectly, 0 no better than a constant.
    critic_loss
        Mean squared error of the critic against the targets, in the task's units.
    already_seen
        The statistics of the normaliser hold these observations already.
    """

    observations: Any
    actions: Tensor
    advantages: Tensor
    mask: Tensor | None
    states: Any
    memories: Tensor | None
    targets: Tensor
    explained_variance: float
    critic_loss: float
    already_seen: bool

    def in_sequences(self, rollout: Rollout) -> LearningBatch:
        """The same for a recurrent policy: a sequence (T,) an environment, resets masked out.

        Parameters
        ----------
        rollout
            The rollout that the batch was made from, with memories.
        """
        assert rollout.memories is not None
        advantages = torch.zeros(rollout.rewards.shape)
        advantages[rollout.valid] = self.advantages
        by_environment = optree.tree_map(lambda leaf: leaf.transpose(0, 1), rollout.observations)
        return replace(
            self,
            observations={
                "observations": by_environment,
                "starts": rollout.starts.T,
                "memory": rollout.memories[0],
            },
            actions=rollout.actions.transpose(0, 1),
            advantages=advantages.T,
            mask=rollout.valid.T,
        )

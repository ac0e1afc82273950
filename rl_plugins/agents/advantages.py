"""Generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Â_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) − V(s_t); all tensors are (T, N).

    ``next_values`` is V of the observation that the step itself led to: where an episode ended,
    that of its true last observation, not of the reset that followed. A terminated step bootstraps
    0 whatever ``next_values`` holds there (NaN included), a truncated step bootstraps its
    ``next_values``; a step that is both counts as terminated. The sum never runs over the end of
    an episode. Targets for the critic are ``gae(...) + values``.

    Raises ``ValueError`` where shapes differ or γ or λ lies outside [0, 1].

    Source: Schulman et al., "High-dimensional continuous control using generalized advantage
    estimation", 2016, equation 16.

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

"""A rollout whose episodes end by termination or truncation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """Steps of one environment, with standard normal rewards and values.

    Attributes
    ----------
    ends
        A character for each of the T steps: the episode goes on ("."), is terminated ("x") or is
        truncated ("|").
    seed
        Seed of rewards and values.
    """

    ends: str
    seed: int = 0

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rewards, values, next values, terminated and truncated, each (T, 1)."""
        generator = torch.Generator().manual_seed(self.seed)
        T = len(self.ends)
        rewards, values, following = torch.randn(3, T, 1, generator=generator, dtype=torch.float64)
        terminated = torch.tensor([[end == "x"] for end in self.ends])
        truncated = torch.tensor([[end == "|"] for end in self.ends])
        # Within an episode the next observation's V is the value of the next step.
        inside = ~(terminated | truncated)[:-1]
        following[:-1] = torch.where(inside, values[1:], following[:-1])
        return rewards, values, following, terminated, truncated

    def differences(self, discount: float) -> list[float]:
        """Temporal differences δ_t = r_t + γ V(s_{t+1}) − V(s_t), with V = 0 after termination.

        Parameters
        ----------
        discount
            The discount γ per step.
        """
        rewards, values, following, terminated, _ = self.tensors
        bootstrapped = torch.where(terminated, 0.0, following)
        found: list[float] = (rewards + discount * bootstrapped - values).flatten().tolist()
        return found

    def to_the_end(self, t: int) -> int:
        """The number of steps from t to the end of its episode, t included.

        Parameters
        ----------
        t
            A step, from 0.
        """
        for length, end in enumerate(self.ends[t:], start=1):
            if end != ".":
                return length
        return len(self.ends) - t

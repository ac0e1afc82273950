"""Steps of several environments at once, with episodes that end in both ways."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """One environment; ``ends`` says of each step whether the episode goes on ("."), is terminated
    ("x") or truncated ("|") there. Rewards and values are standard normal, from the seed."""

    ends: str
    seed: int = 0

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """rewards, values, next_values, terminated, truncated, each (T, 1)."""
        generator = torch.Generator().manual_seed(self.seed)
        T = len(self.ends)
        rewards, values, following = torch.randn(3, T, 1, generator=generator, dtype=torch.float64)
        terminated = torch.tensor([[end == "x"] for end in self.ends])
        truncated = torch.tensor([[end == "|"] for end in self.ends])
        # Within an episode V of the next observation is the next step's own value.
        inside = ~(terminated | truncated)[:-1]
        following[:-1] = torch.where(inside, values[1:], following[:-1])
        return rewards, values, following, terminated, truncated

    def differences(self, discount: float) -> list[float]:
        """δ_t = r_t + γ V(s_{t+1}) − V(s_t), V = 0 after termination."""
        rewards, values, following, terminated, _ = self.tensors
        bootstrapped = torch.where(terminated, 0.0, following)
        found: list[float] = (rewards + discount * bootstrapped - values).flatten().tolist()
        return found

    def to_the_end(self, t: int) -> int:
        """How many steps from t on belong to its episode, t included."""
        for length, end in enumerate(self.ends[t:], start=1):
            if end != ".":
                return length
        return len(self.ends) - t

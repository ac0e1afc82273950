"""Rewards in units of their own running deviation; the statistics are saved with the agent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rl_plugins.policies.normalisation import RunningMoments


class RewardNormaliser(nn.Module):
    """Rewards divided by the running deviation of the discounted return, and clipped.

    Not centred: a shift of all rewards changes which episode length is best. The return so far of
    every environment runs on from one rollout to the next.

    Parameters
    ----------
    discount
        γ of the return.
    clip
        Bound on the absolute value of a scaled reward, in deviations of the return.
    """

    scale: Tensor

    def __init__(self, discount: float, clip: float = 10.0) -> None:
        super().__init__()
        self.moments = RunningMoments()
        self.discount, self.clip = discount, clip
        self.register_buffer("scale", torch.ones(()))
        self._running: Tensor | None = None

    @torch.no_grad()
    def update(self, rewards: Tensor, starts: Tensor, valid: Tensor) -> None:
        """Merge the rewards of a rollout into the statistics.

        Parameters
        ----------
        rewards
            (T, N).
        starts
            (T, N) bool, True where an episode, and with it a return, begins.
        valid
            (T, N) bool, False where a step only reset an environment: it is not counted.
        """
        if self._running is None or len(self._running) != rewards.shape[1]:
            self._running = torch.zeros(rewards.shape[1], dtype=torch.float64)
        returns = torch.empty(rewards.shape, dtype=torch.float64)
        for t, reward in enumerate(rewards.double()):
            self._running = self._running.masked_fill(starts[t], 0.0) * self.discount + reward
            returns[t] = self._running
        self.moments.update(returns[valid])
        deviation = self.moments.variance.sqrt()
        if bool(deviation > torch.finfo(torch.float32).eps * self.moments.mean.abs()):
            self.scale.copy_(deviation)

    def forward(self, rewards: Tensor) -> Tensor:
        """Scale and clip.

        Parameters
        ----------
        rewards
            A tensor of any shape.
        """
        scaled: Tensor = (rewards / self.scale).clamp(-self.clip, self.clip)
        return scaled

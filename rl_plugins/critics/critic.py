"""The state-value function V(s) of the on-policy family."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from rl_plugins.policies.normalisation import RunningMoments


class Regression(Protocol):
    """A way to fit a network to targets by least squares."""

    def fit(self, network: nn.Module, features: Tensor, targets: Tensor) -> None:
        """Lower the mean of (network(features) − targets)², features (B, d), targets (B,)."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class Critic(nn.Module):
    """V(s) = σ · network(normaliser(s)), with σ the running standard deviation of the targets.

    The network sees targets of order one whatever the task pays, while rewards, returns and
    advantages stay in the task's own units. When σ moves, the last layer is rescaled by the
    inverse, so that V itself does not (van Hasselt et al., "Learning values across many orders of
    magnitude", 2016, section 2.2; here for the scale only).
    """

    scale: Tensor

    def __init__(self, normaliser: nn.Module, network: nn.Sequential, regression: Regression):
        super().__init__()
        self.normaliser, self.network, self.regression = normaliser, network, regression
        self.moments = RunningMoments()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, observations: Tensor) -> Tensor:
        """V, (B,), of observations (B, *shape)."""
        values: Tensor = self.scale * self.network(self._features(observations)).squeeze(-1)
        return values

    def fit(self, observations: Tensor, targets: Tensor) -> None:
        """Regress V(observations) on the fixed targets (B,): no gradient flows into them."""
        targets = targets.detach()
        self._rescale(targets)
        with torch.no_grad():
            features = self._features(observations)
        self.regression.fit(self.network, features, targets / self.scale)

    @torch.no_grad()
    def _rescale(self, targets: Tensor) -> None:
        self.moments.update(targets)
        deviation = self.moments.variance.sqrt().to(self.scale.dtype)
        if not bool(torch.isfinite(deviation)) or not bool(deviation > 0):
            return  # constant targets (a task that pays nothing yet): keep the units
        last = self.network[-1]
        for parameter in last.parameters():
            parameter.mul_(self.scale / deviation)
        self.scale.copy_(deviation)

    def _features(self, observations: Tensor) -> Tensor:
        features: Tensor = self.normaliser(observations)
        return features.flatten(1)


def explained_variance(values: Tensor, targets: Tensor) -> float:
    """1 − Var(targets − values) / Var(targets): 1 is perfect, 0 is no better than a constant."""
    targets, values = targets.double(), values.double()
    variance = targets.var(correction=0)
    if not bool(variance > 0):
        return float("nan")
    return 1.0 - float((targets - values).var(correction=0) / variance)

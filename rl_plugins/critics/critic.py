"""The state-value function V(s) of the on-policy family."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rl_plugins.policies import Features, Perception, RunningMoments
from rl_plugins.policies.normalisation import Reader
from rl_plugins.policies.observations import FeatureBatch


class Regression(Protocol):
    """A way to fit a network to targets by least squares."""

    def fit(self, network: nn.Module, features: FeatureBatch, targets: Tensor) -> None:
        """Lower the mean of (network(features) − targets)², features (B, …), targets (B,)."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Critic(nn.Module):
    """V(s) = μ + σ · network(features(s)), with μ and σ the running moments of the targets.

    The network sees targets of mean 0 and deviation 1 whatever the task pays, while rewards,
    returns and advantages stay in the task's own units. When μ and σ move, the last layer is
    changed by the inverse, so that V itself does not.

    Beside a recurrent policy it also sees what the policy remembers: an observation alone does not
    tell the state. The memory is data here; no gradient flows into it.

    Source: van Hasselt et al., "Learning values across many orders of magnitude", 2016, section 2.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, features: Features, network: nn.Sequential | Perception, regression: Regression
    ) -> None:
        super().__init__()
        self.features, self.network, self.regression = features, network, regression
        self.moments = RunningMoments()
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, observations: Any, memories: Tensor | None = None) -> Tensor:
        """V, (B,), of observations (B, …) and memories (B, h)."""
        standardised = self.network(self._inputs(observations, memories)).squeeze(-1)
        values: Tensor = self.shift + self.scale * standardised
        return values

    def fit(self, observations: Any, targets: Tensor, memories: Tensor | None = None) -> None:
        """Regress V(observations) on the fixed targets (B,): no gradient flows into them.

        The critic stays bitwise what it was where a target is NaN or infinite.
        """
        targets = targets.detach()
        if not bool(torch.isfinite(targets).all()):
            return  # one NaN would be in the moments for ever
        self._rescale(targets)
        with torch.no_grad():
            inputs = self._inputs(observations, memories)
        self.regression.fit(self.network, inputs, (targets - self.shift) / self.scale)

    def readers(self) -> list[Reader]:
        """The layers that must change with the statistics of the observations."""
        first = self.network[0]
        assert isinstance(first, nn.Linear)
        return [(first.weight, first.bias)]

    @torch.no_grad()
    def _rescale(self, targets: Tensor) -> None:
        untrained = not bool(self.moments.count)
        self.moments.update(targets)
        shift = self.moments.mean.to(self.shift.dtype)
        deviation = self.moments.variance.sqrt()
        # Targets that are equal but for rounding (a task that pays nothing yet) keep the unit.
        noise = torch.finfo(self.scale.dtype).eps * self.moments.mean.abs()
        scale = torch.where(deviation > noise, deviation, self.scale).to(self.scale.dtype)
        if not untrained:  # the values of a network that has seen nothing are not worth keeping
            last = self.network[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(self.scale / scale)
            last.bias.mul_(self.scale).add_(self.shift - shift).div_(scale)
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def _inputs(self, observations: Any, memories: Tensor | None) -> FeatureBatch:
        inputs = self.features(observations)
        if memories is None:
            return inputs
        if isinstance(inputs, Tensor):
            return torch.cat([inputs, memories], dim=1)
        return {**inputs, "vector": torch.cat([inputs["vector"], memories], dim=1)}


def explained_variance(values: Tensor, targets: Tensor) -> float:
    """1 − Var(targets − values) / Var(targets): 1 is perfect, 0 is no better than a constant."""
    targets, values = targets.double(), values.double()
    variance = targets.var(correction=0)
    if not bool(variance > 0):
        return float("nan")
    return 1.0 - float((targets - values).var(correction=0) / variance)

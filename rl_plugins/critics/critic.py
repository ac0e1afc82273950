"""The state-value function V(s) of the on-policy family, and the two ways to fit it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import optree
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from natgrad import Fisher, backtracking, cg, natural_step
from natgrad.flat import assign, flatten, gradient
from rl_plugins.policies import Features, Perception, RunningMoments
from rl_plugins.policies.normalisation import Reader
from rl_plugins.policies.observations import FeatureBatch


class CriticFit(Protocol):
    """A way to fit a network to targets by least squares."""

    def fit(self, network: nn.Module, features: FeatureBatch, targets: Tensor) -> None:
        """Lower the mean of (network(features) − targets)².

        Parameters
        ----------
        network
            Features -> (B, 1).
        features
            (B, …).
        targets
            (B,).
        """

    def state_dict(self) -> dict[str, Any]:
        """All that lives on from one fit to the next."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """


class Critic(nn.Module):
    """V(s) = μ + σ · network(features(s)), with μ and σ the running moments of the targets.

    The network sees targets of mean 0 and deviation 1 on every task, while rewards,
    returns and advantages stay in the task's own units. When μ and σ move, the last layer is
    changed by the inverse, so that V itself does not.

    Beside a recurrent policy it also sees the policy's memory: an observation alone does not tell
    the state. The memory is data here; no gradient flows into it.

    Parameters
    ----------
    features
        Observations -> the inputs of the network; shared with the policy.
    network
        Features, and the memory behind their vector -> (B, 1).
    regression
        How the network is fitted.

    Notes
    -----
    Source: van Hasselt et al., "Learning values across many orders of magnitude", 2016, section 2.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, features: Features, network: nn.Sequential | Perception, regression: CriticFit
    ) -> None:
        super().__init__()
        self.features, self.network, self.regression = features, network, regression
        self.moments = RunningMoments()
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, observations: Any, memories: Tensor | None = None) -> Tensor:
        """V, (B,).

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        memories
            (B, h) of a recurrent policy; None for others.
        """
        standardised = self.network(self._inputs(observations, memories)).squeeze(-1)
        values: Tensor = self.shift + self.scale * standardised
        return values

    def fit(self, observations: Any, targets: Tensor, memories: Tensor | None = None) -> None:
        """Regress V on fixed targets. Where one is NaN or infinite, nothing changes.

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        targets
            (B,); no gradient flows into them.
        memories
            (B, h) of a recurrent policy; None for others.
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
        if not untrained:  # the values of an untrained network are not worth keeping
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


@dataclass(frozen=True)
class GaussNewtonRegression:
    """A few truncated Gauss-Newton steps on the whole batch: no learning rate, no state.

    The Gauss-Newton matrix of ½ mean (V − target)² is the Fisher matrix of Normal(V, 1). The
    truncation of CG regularises: it moves along the directions that the batch determines well.

    Attributes
    ----------
    steps
        Gauss-Newton steps of a fit; more fit closer.
    cg_iterations
        Most conjugate-gradient iterations of a step.
    damping
        Added to the matrix, for targets of unit variance; raise it for shorter, safer steps.
    stride
        Estimate the matrix on every k-th state; gradient and line search use all (Byrd et al., "On
        the use of stochastic Hessian information in optimization methods for machine learning",
        2011). Raise it for speed.

    Notes
    -----
    Cost: ``steps`` · (``cg_iterations`` / ``stride`` + about 2) gradients.
    """

    steps: int = 2
    cg_iterations: int = 10
    damping: float = 0.1
    stride: int = 1

    def fit(self, network: nn.Module, features: FeatureBatch, targets: Tensor) -> None:
        """See :meth:`CriticFit.fit`; ends early at a step that the line search refuses."""
        parameters = list(network.parameters())

        def half_mean_square(values: Tensor) -> Tensor:
            return 0.5 * (values - targets).square().mean()

        def evaluate(theta: Tensor) -> tuple[Tensor, float]:
            assign(parameters, theta)
            return half_mean_square(network(features).squeeze(-1)), 0.0

        solver = partial(cg, max_iterations=self.cg_iterations, rtol=1e-3)
        every_kth = optree.tree_map(lambda leaf: leaf[:: self.stride], features)
        for _ in range(self.steps):
            loss = half_mean_square(network(features).squeeze(-1))
            downhill = -gradient(loss, parameters)
            sampled = network(every_kth).squeeze(-1)
            metric = Fisher(Normal(sampled, torch.ones_like(sampled)), parameters)
            step = natural_step(metric, downhill, damping=self.damping, longest=1.0, solver=solver)
            search = backtracking(
                evaluate,
                flatten(parameters),
                step.d,
                start_objective=loss.detach(),
                expected_improvement=downhill @ step.d,
            )
            assign(parameters, search.theta)
            if not search.accepted:
                break

    def state_dict(self) -> dict[str, Any]:
        """{}: nothing lives on between fits."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`CriticFit.load_state_dict`; there is nothing to restore."""


class AdamRegression:
    """Adam on shuffled minibatches, as in common libraries; its moments live on between fits.

    Parameters
    ----------
    network
        The network that will be fitted.
    epochs
        Passes over the batch in a fit.
    batch_size
        States of a minibatch.
    learning_rate
        Adam's, for targets of unit variance.
    generator
        Shuffles the minibatches.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        generator: torch.Generator,
    ) -> None:
        # fused: one kernel a step; the small networks of RL spend their time in launches.
        self._optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
        self._epochs, self._batch_size, self._generator = epochs, batch_size, generator

    def fit(self, network: nn.Module, features: FeatureBatch, targets: Tensor) -> None:
        """See :meth:`CriticFit.fit`. Where a target is NaN or infinite, nothing changes."""
        if not bool(torch.isfinite(targets).all()):
            return  # one NaN would be in every weight after one epoch
        for _ in range(self._epochs):
            order = torch.randperm(len(targets), generator=self._generator)
            for batch in torch.split(order, self._batch_size):
                part = optree.tree_map(lambda leaf: leaf[batch], features)  # noqa: B023
                loss = (network(part).squeeze(-1) - targets[batch]).square().mean()
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and settings."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`CriticFit.load_state_dict`."""
        self._optimizer.load_state_dict(state)


def explained_variance(values: Tensor, targets: Tensor) -> float:
    """1 − Var(targets − values) / Var(targets): 1 is perfect, 0 is no better than a constant.

    Parameters
    ----------
    values
        (B,), the predictions.
    targets
        (B,). Where all are equal, the result is NaN.
    """
    targets, values = targets.double(), values.double()
    variance = targets.var(correction=0)
    if not bool(variance > 0):
        return float("nan")
    return 1.0 - float((targets - values).var(correction=0) / variance)

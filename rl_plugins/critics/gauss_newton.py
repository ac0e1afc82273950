"""Least squares by Gauss-Newton steps, from natgrad's own primitives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from natgrad import Fisher, backtracking, cg, natural_step
from natgrad.flat import assign, flatten, gradient
from rl_plugins.policies.observations import FeatureBatch


@dataclass(frozen=True)
class GaussNewtonRegression:
    """A few truncated Gauss-Newton steps on the whole batch: no learning rate, no state.

    The Gauss-Newton matrix of ½ mean (V − target)² is the Fisher matrix of Normal(V, 1). The
    truncation of CG regularises: it moves along the directions that the batch determines well.
    ``stride`` estimates the matrix on every k-th state; gradient and line search use all (Byrd et
    al., "On the use of stochastic Hessian information in optimization methods for machine
    learning", 2011).
    Cost: ``steps`` · (``cg_iterations`` / ``stride`` + about 2) gradients.
    """

    steps: int = 2
    cg_iterations: int = 10
    damping: float = 0.1
    stride: int = 1

    def fit(self, network: nn.Module, features: FeatureBatch, targets: Tensor) -> None:
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
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

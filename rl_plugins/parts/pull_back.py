"""A finished update of a policy, pulled back onto the trust region."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from natgrad import backtracking
from natgrad.flat import assign, flatten
from rl_plugins.parts.surrogate import Surrogate

SHRINK = 0.8
# 0.8¹⁰⁰ is 2e-10: where the bound does not hold there, the update was not finite in size.
MAX_BACKTRACKS = 100


@dataclass(frozen=True)
class PullBack:
    """``fraction`` of the update that was kept, 0 where no part of it keeps the bound, and the KL
    of the ``whole`` update."""

    fraction: float
    whole: float


def pull_back(
    policy: nn.Module,
    parameters: list[Tensor],
    surrogate: Surrogate,
    theta_old: Tensor,
    max_kl: float,
) -> PullBack:
    """Leave the policy at the first θ_old + cʲ (θ − θ_old) with E[KL(π_old ‖ π)] <= ``max_kl``,
    θ being where it stands; at θ_old if there is none.

    The direction is that of the update, whatever found it: no improvement is asked for. Cost: one
    forward pass a candidate.
    """
    step = flatten(parameters) - theta_old
    if not bool(step.any()):
        return PullBack(1.0, 0.0)
    kls: list[float] = []

    def evaluate(theta: Tensor) -> tuple[float, float]:
        assign(parameters, theta)
        kls.append(float(surrogate.kl(policy(surrogate.observations))))
        return -1.0, kls[-1]

    search = backtracking(
        evaluate, theta_old, step,
        bound=max_kl, start_objective=0.0, shrink=SHRINK, max_backtracks=MAX_BACKTRACKS,
    )  # fmt: skip
    assign(parameters, search.theta)
    return PullBack(search.fraction, kls[0] if kls else math.inf)

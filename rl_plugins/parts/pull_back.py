"""A finished update of a policy, pulled back onto the trust region; a policy as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from natgrad import backtracking
from natgrad.flat import assign, flatten
from rl_plugins.parts.surrogate import Surrogate

SHRINK = 0.8
# 0.8¹⁰⁰ is 2e-10: an update that breaks the bound even there has diverged.
MAX_BACKTRACKS = 100


@dataclass(frozen=True)
class PullBack:
    """The outcome of :func:`pull_back`.

    Attributes
    ----------
    fraction
        Part of the update that was kept; 0 where no part of it keeps the bound.
    whole
        KL of the whole update, in nats.
    """

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
    θ being its present parameters; at θ_old if there is none.

    The direction stays that of the update, and no improvement is asked for.

    Parameters
    ----------
    policy
        π, at θ; it is moved.
    parameters
        θ: its parameters that are trained.
    surrogate
        Measures the KL from π_old.
    theta_old
        (n,), the parameters before the update.
    max_kl
        The bound, in nats.

    Notes
    -----
    Cost: one forward pass a candidate.
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
        evaluate,
        theta_old,
        step,
        bound=max_kl,
        start_objective=0.0,
        shrink=SHRINK,
        max_backtracks=MAX_BACKTRACKS,
    )
    assign(parameters, search.theta)
    return PullBack(search.fraction, kls[0] if kls else math.inf)


def frozen(policy: nn.Module) -> Callable[[Any], Distribution]:
    """The policy with its present parameters, for good.

    Parameters
    ----------
    policy
        Its parameters are copied, its buffers are not.
    """
    parameters = {name: p.detach().clone() for name, p in policy.named_parameters()}
    return lambda observations: functional_call(policy, parameters, (observations,))

"""The actor's step of DDPG and TD3: up ∇_θ E[Q(s, μ_θ(s))] = E[∂Q/∂a · ∂μ/∂θ]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from natgrad import GaussNewton, backtracking, cg, natural_step
from natgrad.curvature import metrics
from natgrad.flat import assign, flatten, gradient
from rl_plugins.parts.first_order import descend
from rl_plugins.settings import Settings, require_between, require_least, require_one_of


@dataclass(frozen=True)
class DeterministicGradientSettings(Settings):
    """Settings of DDPG's and TD3's gradient steps."""

    discount: float = 0.99
    """γ, the weight of a reward one step later; nearer to 1 where rewards come late."""
    optimizer: str = "Adam"
    """An optimizer of torch.optim, or any other as package.module:Class."""
    actor_learning_rate: float = 1e-3
    """Learning rate of the actor; less where learning collapses. Not used by the natural step."""
    critic_learning_rate: float = 1e-3
    """Learning rate of the critic; less where its loss grows."""
    target_rate: float = 0.005
    """τ: the target networks move by this part towards the others at every gradient step; less for
    steadier targets."""
    actor: Literal["gradient", "natural"] = "gradient"
    """How the actor climbs Q: by the optimizer, or by natural steps bounded in action space."""
    max_action_change: float = 0.01
    """Natural step: bound on the root mean square change of an action, in half ranges; less where
    learning collapses."""
    damping: float = 0.01
    """Natural step: λ, added to the matrix; more for shorter steps in directions that few states
    determine."""
    cg_iterations: int = 10
    """Natural step: most conjugate-gradient iterations; each costs a product."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "actor", "gradient", "natural")
        require_between(self, 0, 1, "discount", "target_rate")
        require_least(self, 0, "actor_learning_rate", "critic_learning_rate", exclusive=True)
        require_least(self, 0, "max_action_change", "target_rate", exclusive=True)
        require_least(self, 0, "damping")
        require_least(self, 1, "cg_iterations")


@dataclass(frozen=True)
class ActorStep:
    """The outcome of :func:`actor_step`.

    Attributes
    ----------
    value
        E[Q(s, μ(s))] before the step, 0-d.
    change
        Root mean square change of an action by a natural step, in half ranges; NaN for others.
    """

    value: Tensor
    change: float = math.nan


def actor_step(
    policy: nn.Module,
    parameters: Sequence[Tensor],
    critic: Callable[[Any, Tensor], Tensor],
    observations: Any,
    optimizer: torch.optim.Optimizer,
    settings: DeterministicGradientSettings,
) -> ActorStep:
    """One step of the policy up E[Q(s, μ(s))] over a batch of states; no gradient in Q's weights.

    The natural step measures distance by E‖Δμ(s)‖², whose matrix is the Gauss-Newton matrix
    K = E[JᵀJ] of the actions: s = (K + λI)⁻¹ g is scaled to the bound and searched along until the
    bound and an improvement of E[Q] both hold on the batch.

    Parameters
    ----------
    policy
        μ: observations -> actions (B, d); it is moved.
    parameters
        Its parameters that are trained.
    critic
        Q: (observations, actions) -> values (B,).
    observations
        B states.
    optimizer
        Makes the step, where ``settings.actor`` is "gradient".
    settings
        Which step, and its sizes.

    Notes
    -----
    Cost: one gradient through Q; the natural step ``cg_iterations`` products more.
    """
    actions = policy(observations)
    objective = critic(observations, actions).mean()
    if settings.actor == "gradient":
        descend(-objective, parameters, optimizer)
        return ActorStep(objective.detach())

    g = gradient(objective, parameters, retain_graph=True)
    # squared_error is the mean over states and dimensions of (a − a′)², its matrix twice E[JᵀJ].
    K = GaussNewton(actions, parameters, metrics.squared_error)
    bound = settings.max_action_change**2
    solver = partial(cg, max_iterations=settings.cg_iterations, rtol=1e-3)
    step = natural_step(K, g, damping=settings.damping, bound=bound, solver=solver).d
    theta_old = flatten(parameters)
    # A copy: actions may share memory with a parameter that a candidate overwrites.
    old_actions = actions.detach().clone()

    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
        assign(parameters, theta)
        moved = policy(observations)
        return -critic(observations, moved).mean(), (moved - old_actions).square().mean()

    search = backtracking(
        evaluate,
        theta_old,
        step,
        bound=bound,
        start_objective=-objective.detach(),
        expected_improvement=g @ step,
        shrink=0.7,
    )
    assign(parameters, search.theta)
    change = math.sqrt(search.constraint) if search.accepted else 0.0
    return ActorStep(objective.detach(), change)

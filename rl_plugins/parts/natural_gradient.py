"""The step that NPG takes and TRPO searches along, and the report on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import optree
import torch
from torch import Tensor, nn

from natgrad import (
    Fisher,
    LineSearchResult,
    LineSearchStatus,
    Step,
    StepSizeStatus,
    cg,
    natural_step,
)
from rl_plugins.parts.surrogate import Surrogate
from rl_plugins.reports import TrustRegionReport
from rl_plugins.settings import Settings, require_least


@dataclass(frozen=True)
class NaturalGradientSettings(Settings):
    """Settings of a natural-gradient step of a given KL."""

    max_kl: float = 0.01
    """δ, the bound on E[KL(π_old ‖ π_θ)] of one update, in nats; smaller where learning collapses,
    larger where it is slow but steady."""
    damping: float = 0.1
    """λ, added to the Fisher matrix in the solve, not in the step size; more where solves stop at
    their iteration limit."""
    cg_iterations: int = 15
    """Most conjugate-gradient iterations an update; each costs one Fisher product."""
    cg_tolerance: float = 1e-3
    """Relative residual at which conjugate gradients stop early."""
    fisher_stride: int = 1
    """Estimate the Fisher matrix on every k-th state, for speed; the gradient uses all."""
    fisher_chunk_size: int | None = None
    """States a chunk of each Fisher product, where memory is short: it is independent of the batch
    then, at about 2.5 times the time. Unset: one graph is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, 0, "max_kl", exclusive=True)
        require_least(self, 0, "damping", "cg_tolerance")
        require_least(self, 1, "cg_iterations", "fisher_stride")
        if self.fisher_chunk_size is not None:
            require_least(self, 1, "fisher_chunk_size")


def policy_step(
    policy: nn.Module,
    parameters: list[Tensor],
    surrogate: Surrogate,
    g: Tensor,
    settings: NaturalGradientSettings,
) -> Step:
    """α s with (K + λI) s = g and ½ (αs)ᵀ K (αs) = δ, K the Fisher matrix of π at θ_old.

    Parameters
    ----------
    policy
        π, at θ_old.
    parameters
        θ: its parameters that are trained.
    surrogate
        The states, and the mask of those that count.
    g
        The surrogate's gradient at θ_old, (n,).
    settings
        δ, λ, and how the system is solved.

    Notes
    -----
    Cost: ``cg_iterations`` Fisher products and the set-up of one.
    """
    mask = surrogate.mask
    every: slice | Tensor = slice(None, None, settings.fisher_stride)
    if mask is not None:  # skip samples that are nothing but padding
        every = mask.reshape(len(mask), -1).any(dim=1).nonzero().squeeze(1)[every]
    # The Hessian of E[KL(π_old ‖ π_θ)] at θ_old. The KL itself is 0 there, and so is its gradient.
    K = Fisher(
        policy,
        parameters,
        data=optree.tree_map(lambda leaf: leaf[every], surrogate.observations),
        weights=None if mask is None else mask[every].to(g.dtype),
        chunk_size=settings.fisher_chunk_size,
    )
    solver = partial(cg, max_iterations=settings.cg_iterations, rtol=settings.cg_tolerance)
    return natural_step(K, g, damping=settings.damping, bound=settings.max_kl, solver=solver)


def report_step(
    surrogate: Surrogate, g: Tensor, natural: Step, search: LineSearchResult, max_kl: float
) -> TrustRegionReport:
    """The report on an update, read back from the device once, at its end.

    Parameters
    ----------
    surrogate
        Advantages, and the entropy of π_old.
    g
        Its gradient at θ_old, (n,).
    natural
        The step that was proposed.
    search
        How much of it was taken.
    max_kl
        The bound, in nats.
    """
    norm = float(torch.linalg.vector_norm(g))
    status, solution = search.status, natural.solution
    if natural.status is StepSizeStatus.NONFINITE:  # d is zero then: say why
        status = LineSearchStatus.NONFINITE
    if status is LineSearchStatus.ZERO_STEP and norm == 0 and bool(surrogate.advantages.any()):
        # The advantages are not 0: the gradient vanishes because of the policy.
        status = LineSearchStatus.ZERO_GRADIENT
    return TrustRegionReport(
        status=status,
        kl=search.constraint,
        max_kl=max_kl,
        entropy=float(surrogate.entropy()),
        improvement=search.improvement,
        expected_improvement=float(g @ natural.d),
        step_fraction=search.fraction,
        evaluations=search.evaluations,
        gradient_norm=norm,
        cg_status=solution.status,
        cg_iterations=solution.iterations,
        cg_residual=solution.residual_norm / norm if norm > 0 else 0.0,
    )

"""The step that NPG takes and TRPO searches along."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import optree
from torch import Tensor, nn

from natgrad import Fisher, Step, cg, natural_step
from rl_plugins.parts.surrogate import Surrogate
from rl_plugins.settings import Settings, require_least


@dataclass(frozen=True)
class NaturalGradientSettings(Settings):
    """Settings of a natural-gradient step of a given KL."""

    max_kl: float = 0.01
    """δ, the bound on E[KL(π_old ‖ π_θ)] of one update, in nats."""
    damping: float = 0.1
    """λ, added to the Fisher matrix in the solve, not in the step size."""
    cg_iterations: int = 15
    """Most conjugate-gradient iterations an update."""
    cg_tolerance: float = 1e-3
    """Relative residual at which conjugate gradients stop early."""
    fisher_stride: int = 1
    """Estimate the Fisher matrix on every k-th state; the gradient uses all."""
    fisher_chunk_size: int | None = None
    """States a chunk of each Fisher product: memory independent of the batch, at about 2.5 times
    the time. Unset: one graph is kept."""

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

    Cost: ``cg_iterations`` Fisher products and the set-up of one.
    """
    mask = surrogate.mask
    every: slice | Tensor = slice(None, None, settings.fisher_stride)
    if mask is not None:  # of the samples that are not padding alone
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

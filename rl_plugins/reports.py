"""What one update did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from natgrad import LineSearchResult, LineSearchStatus, Solution, Status


class StepStatus(Enum):
    """How a first-order update ended."""

    TAKEN = "the parameters moved"
    NONFINITE = "a loss or a gradient was NaN or infinite; the parameters are as they were"
    REFUSED = "no part of the update kept the bound on the KL; the parameters are as they were"
    WAITING = "the replay buffer does not hold enough yet; nothing was learnt"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One update. Every field is a column of ``progress.csv``; ``summary`` is worth watching."""

    explained_variance: float = math.nan

    @property
    def summary(self) -> str:
        """A part of the progress line."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TrustRegionReport(StepReport):
    """A natural-gradient update. ``kl`` and ``improvement`` are the accepted candidate's, or the
    last refused one's (NaN if there was none); ``step_fraction`` is 0 where the update was
    refused. ``kl`` is E[KL(π_old ‖ π_new)] on all states."""

    status: LineSearchStatus
    kl: float
    max_kl: float
    entropy: float
    improvement: float
    expected_improvement: float
    step_fraction: float
    evaluations: int
    gradient_norm: float
    cg_status: Status
    cg_iterations: int
    cg_residual: float

    @classmethod
    def of(
        cls,
        gradient: Tensor,
        solution: Solution[Tensor],
        step: Tensor,
        search: LineSearchResult,
        *,
        advantages: Tensor,
        max_kl: float,
        entropy: Tensor,
    ) -> TrustRegionReport:
        """From the pieces of the update, read back from the device once, at its end."""
        norm = float(torch.linalg.vector_norm(gradient))
        status = search.status
        if status is LineSearchStatus.ZERO_STEP and norm == 0 and bool(advantages.any()):
            status = LineSearchStatus.ZERO_GRADIENT  # the policy's doing
        return cls(
            status=status,
            kl=search.constraint,
            max_kl=max_kl,
            entropy=float(entropy),
            improvement=search.improvement,
            expected_improvement=float(gradient @ step),
            step_fraction=search.fraction,
            evaluations=search.evaluations,
            gradient_norm=norm,
            cg_status=solution.status,
            cg_iterations=solution.iterations,
            cg_residual=solution.residual_norm / norm if norm > 0 else 0.0,
        )

    @property
    def summary(self) -> str:
        """KL against its bound and the outcome of the step."""
        outcome = self.status.name.lower().replace("_", " ")
        return f"KL {self.kl:.4f} of {self.max_kl:g}  {outcome} ×{self.step_fraction:.2f}"


@dataclass(frozen=True, kw_only=True)
class GradientReport(StepReport):
    """An update of A2C or PPO. ``kl`` is E[KL(π_old ‖ π_new)] on all states, ``improvement`` that
    of E[π/π_old · A], both NaN where no policy came of the update; ``gradient_norm`` is before
    clipping, the mean over minibatches. ``step_fraction`` is below 1 where a hard bound on the KL
    pulled the update back, 0 where the parameters are as they were."""

    status: StepStatus
    kl: float
    entropy: float
    improvement: float
    gradient_norm: float
    learning_rate: float
    clip_fraction: float = 0.0
    penalty: float = 0.0
    step_fraction: float = 1.0

    @property
    def summary(self) -> str:
        return f"KL {self.kl:.4f}  {self.status.name.lower()} ×{self.step_fraction:.2f}"


@dataclass(frozen=True, kw_only=True)
class OffPolicyReport(StepReport):
    """The gradient steps of DDPG or TD3 since the last report; means over them."""

    status: StepStatus
    updates: int
    critic_loss: float = math.nan
    action_value: float = math.nan
    """E[Q(s, μ(s))], what the actor climbs."""
    action_change: float = math.nan
    """Root mean square change of the actions by the last actor step, in half ranges."""

    @property
    def summary(self) -> str:
        return f"Q {self.action_value:.2f}  critic loss {self.critic_loss:.3g}"

"""Reports: the outcome of one update, by numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from natgrad import LineSearchStatus, Status


class StepStatus(Enum):
    """How a first-order update ended."""

    TAKEN = "the parameters moved"
    NONFINITE = "a loss or a gradient was NaN or infinite; the parameters are as they were"
    REFUSED = "no part of the update kept the bound on the KL; the parameters are as they were"
    WAITING = "the replay buffer does not hold enough yet; nothing was learnt"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One update. Every field is a column of ``progress.csv``.

    Attributes
    ----------
    explained_variance
        How well the critic predicted its targets before its fit: 1 perfectly, 0 no better than a
        constant. NaN without a critic.
    critic_loss
        Mean squared error of the critic against its targets before its fit.
    """

    explained_variance: float = math.nan
    critic_loss: float = math.nan

    @property
    def summary(self) -> str:
        """The numbers to watch during a run, for its progress line."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TrustRegionReport(StepReport):
    """A natural-gradient update.

    Attributes
    ----------
    status
        How the line search ended.
    kl
        E[KL(π_old ‖ π_new)] on all states, in nats, of the accepted candidate, or of the last
        refused one; NaN if there was none.
    max_kl
        Its bound.
    entropy
        E[entropy of π_old], in nats; NaN for families without a formula.
    improvement
        Increase of E[π/π_old · A], for the same candidate as ``kl``.
    expected_improvement
        The same to first order, for the whole step.
    step_fraction
        Part of the step that was taken; 0 where it was refused.
    evaluations
        Candidates that were tried.
    gradient_norm
        Euclidean norm of the gradient.
    cg_status, cg_iterations
        How conjugate gradients ended, and after how many Fisher products.
    cg_residual
        Last residual of conjugate gradients, relative to the gradient.
    """

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

    @property
    def summary(self) -> str:
        """KL against its bound and the outcome of the step."""
        # Short: a line of 80 columns shows it whole.
        outcome = f"×{self.step_fraction:.2f}"
        if self.status is not LineSearchStatus.ACCEPTED:
            outcome = self.status.name.lower().replace("_", " ")
        return f"KL {self.kl:.4f}/{self.max_kl:g} {outcome}"


@dataclass(frozen=True, kw_only=True)
class GradientReport(StepReport):
    """An update of A2C or PPO.

    Attributes
    ----------
    status
        How it ended.
    kl
        E[KL(π_old ‖ π_new)] on all states, in nats; NaN where no policy came of the update.
    entropy
        E[entropy of π_old], in nats; NaN for families without a formula.
    improvement
        Increase of E[π/π_old · A]; NaN where no policy came of the update.
    gradient_norm
        Euclidean norm of the gradient before clipping, the mean over minibatches.
    learning_rate
        The one of this update.
    clip_fraction
        PPO: part of the steps whose ratio ended outside 1 ± ε.
    penalty
        PPO with a penalty: β for the next update.
    step_fraction
        Below 1 where a hard bound on the KL pulled the update back; 0 where the parameters are as
        they were.
    """

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
        """KL and the outcome of the step."""
        return f"KL {self.kl:.4f}  {self.status.name.lower()} ×{self.step_fraction:.2f}"


@dataclass(frozen=True, kw_only=True)
class OffPolicyReport(StepReport):
    """The gradient steps of DDPG or TD3 since the last report; means over them.

    Attributes
    ----------
    status
        How they ended.
    updates
        Their number.
    action_value
        E[Q(s, μ(s))], which the actor climbs.
    action_change
        Root mean square change of the actions by the last actor step, in half ranges; NaN but for
        natural steps.
    """

    status: StepStatus
    updates: int
    action_value: float = math.nan
    action_change: float = math.nan

    @property
    def summary(self) -> str:
        """The mean value of the actions, and the critic's loss."""
        return f"Q {self.action_value:.2f}  critic loss {self.critic_loss:.3g}"

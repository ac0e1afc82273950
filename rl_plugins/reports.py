"""What one natural-gradient update did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad import LineSearchResult, LineSearchStatus, Solution, Status


@dataclass(frozen=True)
class StepReport:
    """One update. ``kl`` and ``improvement`` are the accepted candidate's, or the last refused
    one's (NaN if there was none); ``step_fraction`` is 0 where the update was refused."""

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
    explained_variance: float = float("nan")

    @classmethod
    def of(
        cls,
        gradient: Tensor,
        solution: Solution[Tensor],
        step: Tensor,
        search: LineSearchResult,
        *,
        max_kl: float,
        entropy: Tensor,
    ) -> StepReport:
        """From the pieces of the update, read back from the device once, at its end."""
        norm = float(torch.linalg.vector_norm(gradient))
        return cls(
            status=search.status,
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
        """KL against its bound and the outcome of the line search, for the progress line."""
        outcome = self.status.name.lower().replace("_", " ")
        return f"KL {self.kl:.4f} of {self.max_kl:g}  {outcome} ×{self.step_fraction:.2f}"

"""A distribution of any family, from its name and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution

from natgrad.testing.likelihoods import FAMILIES, metric


@dataclass(frozen=True)
class DistributionCase:
    """``batch`` distributions of a ``family`` (:mod:`natgrad.testing.likelihoods`), as a function
    of standard normal ``outputs`` (batch, 3) that carry a graph."""

    family: str = "categorical"
    batch: int = 1
    seed: int = 0

    @cached_property
    def outputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.batch, 3, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    @property
    def distribution(self) -> Distribution:
        return FAMILIES[self.family](self.outputs)

    @property
    def metric(self) -> Tensor:
        """Its Fisher matrices (batch, 3, 3) in the outputs."""
        return metric(self.family, self.outputs)

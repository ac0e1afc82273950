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
    """Distributions as a function of standard normal outputs.

    Attributes
    ----------
    family
        A name of :data:`natgrad.testing.likelihoods.FAMILIES`.
    batch
        The number N of distributions.
    seed
        Seed of the outputs.
    """

    family: str = "categorical"
    batch: int = 1
    seed: int = 0

    @cached_property
    def outputs(self) -> Tensor:
        """The outputs (N, 3), which require a gradient."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.batch, 3, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    @property
    def distribution(self) -> Distribution:
        """The distributions of the outputs, of batch shape (N,)."""
        return FAMILIES[self.family](self.outputs)

    @property
    def metric(self) -> Tensor:
        """Their Fisher matrices (N, 3, 3) in the outputs."""
        return metric(self.family, self.outputs)

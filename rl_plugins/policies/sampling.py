"""Draws from a distribution with an explicit generator, which ``Distribution.sample`` lacks."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from rl_plugins.policies.joint import Joint


@singledispatch
def sample(distribution: Distribution, generator: torch.Generator) -> Tensor:
    """One draw for each element of the batch; ``sample.register`` adds a family.

    Parameters
    ----------
    distribution
        A normal, categorical, Bernoulli or :class:`Joint` distribution, or ``Independent`` of one.
    generator
        Source of all randomness.

    Raises
    ------
    TypeError
        For a family that is not registered.
    """
    raise TypeError(
        f"cannot sample {type(distribution).__name__} with a generator; "
        "register the family with rl_plugins.policies.sample.register"
    )


@sample.register(Normal)
def _normal(distribution: Normal, generator: torch.Generator) -> Tensor:
    location = distribution.loc
    noise = torch.randn(
        location.shape, generator=generator, dtype=location.dtype, device=location.device
    )
    return torch.addcmul(location, distribution.scale, noise)


@sample.register(Categorical)
def _categorical(distribution: Categorical, generator: torch.Generator) -> Tensor:
    probabilities = distribution.probs.reshape(-1, distribution.probs.shape[-1])
    draws = torch.multinomial(probabilities, 1, replacement=True, generator=generator)
    return draws.view(distribution.batch_shape)


@sample.register(Bernoulli)
def _bernoulli(distribution: Bernoulli, generator: torch.Generator) -> Tensor:
    return torch.bernoulli(distribution.probs, generator=generator)


@sample.register(Independent)
def _independent(distribution: Independent[Distribution], generator: torch.Generator) -> Tensor:
    return sample(distribution.base_dist, generator)


@sample.register(Joint)
def _joint(distribution: Joint, generator: torch.Generator) -> Tensor:
    return distribution.join([sample(part, generator) for part in distribution.components])

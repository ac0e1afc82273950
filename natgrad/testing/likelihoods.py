"""Families of distributions whose parameters are a network's three outputs, and their metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Independent,
    Laplace,
    LogNormal,
    Multinomial,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.nn import functional as F

Family = Callable[[Tensor], Distribution]


def _location(y: Tensor) -> Tensor:
    return y[..., :2]


def _scale(y: Tensor) -> Tensor:
    return F.softplus(y[..., 1:])


def _normal(y: Tensor) -> Normal:
    return Normal(_location(y), _scale(y))


def _multivariate_normal(y: Tensor) -> Distribution:
    zero = torch.zeros_like(y[..., 0])
    rows = [F.softplus(y[..., 0]), zero, y[..., 1], F.softplus(y[..., 2])]
    scale = torch.stack(rows, dim=-1).reshape(*y.shape[:-1], 2, 2)
    return MultivariateNormal(_location(y), scale_tril=scale)


def _affine_normal(y: Tensor) -> Distribution:
    standard = Normal(torch.zeros_like(_location(y)), torch.ones_like(_location(y)))
    return Independent(
        TransformedDistribution(standard, [AffineTransform(_location(y), _scale(y))]), 1
    )


# Functions of outputs (N, 3); the batch shape of each distribution is (N,).
FAMILIES: dict[str, Family] = {
    "categorical": lambda y: Categorical(logits=y),
    "gaussian": lambda y: Independent(_normal(y), 1),
    "mse": lambda y: Independent(Normal(y, torch.ones_like(y)), 1),
    "bernoulli": lambda y: Independent(Bernoulli(logits=y), 1),
    "one_hot": lambda y: OneHotCategorical(logits=y),
    "multinomial": lambda y: Multinomial(4, logits=y),
    "binomial": lambda y: Independent(Binomial(5, logits=y), 1),
    "laplace": lambda y: Independent(Laplace(_location(y), _scale(y)), 1),
    "multivariate_normal": _multivariate_normal,
    "tanh_normal": lambda y: Independent(
        TransformedDistribution(_normal(y), [TanhTransform(cache_size=1)]), 1
    ),
    "affine_normal": _affine_normal,
    "log_normal": lambda y: Independent(LogNormal(_location(y), _scale(y)), 1),
    "beta": lambda y: Independent(Beta(0.5 + _scale(y), 0.5 + y[..., :2].exp()), 1),
    "gamma": lambda y: Independent(Gamma(0.5 + _scale(y), y[..., :2].exp()), 1),
    "dirichlet": lambda y: Dirichlet(0.5 + F.softplus(y)),
    "poisson": lambda y: Independent(Poisson(y.exp()), 1),
    "exponential": lambda y: Independent(Exponential(y.exp()), 1),
    "geometric": lambda y: Independent(Geometric(logits=y), 1),
}
# Families in their natural parameters, where the Fisher matrix is the Hessian of −log p in them.
NATURAL = ("categorical", "bernoulli", "mse")
COMMON = ("categorical", "gaussian", "mse", "bernoulli")
# A bijection without parameters changes no Fisher matrix, and k draws multiply it by k.
_SAME = {
    "tanh_normal": ("gaussian", 1),
    "affine_normal": ("gaussian", 1),
    "log_normal": ("gaussian", 1),
    "one_hot": ("categorical", 1),
    "multinomial": ("categorical", 4),
}


def divergence(family: str, old: Tensor, new: Tensor) -> Tensor:
    """The divergence KL(old ‖ new) (N,).

    Parameters
    ----------
    family
        A name of :data:`FAMILIES`. Laplace's divergence has no Hessian at 0: use :func:`metric`.
    old, new
        Outputs (N, 3).
    """
    base, times = _SAME.get(family, (family, 1))
    found: Tensor = times * kl_divergence(FAMILIES[base](old), FAMILIES[base](new))
    return found


def metric(family: str, outputs: Tensor) -> Tensor:
    """The Fisher matrices (N, 3, 3) of a family in its outputs.

    In closed form for the common families, else the Hessian of the divergence.

    Parameters
    ----------
    family
        A name of :data:`FAMILIES`.
    outputs
        Outputs (N, 3).
    """
    y = outputs.detach()
    base, times = _SAME.get(family, (family, 1))
    if base == "categorical":
        p = y.softmax(-1)
        return times * (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2))
    if base == "bernoulli":
        return torch.diag_embed(y.sigmoid() * (1 - y.sigmoid()))
    if base == "mse":
        return torch.eye(y.shape[-1], dtype=y.dtype).expand(len(y), -1, -1)
    if base in ("gaussian", "laplace"):
        # 1/σ² for the location; for the scale 2/σ² of a normal and 1/b² of a Laplace distribution,
        # times the square of dσ/dy, which is a sigmoid.
        precision, slope = _scale(y).square().reciprocal(), y[..., 1:].sigmoid().square()
        along_scale = (2 if base == "gaussian" else 1) * precision * slope
        return torch.diag_embed(F.pad(precision, (0, 1)) + F.pad(along_scale, (1, 0)))
    with torch.enable_grad():
        point = y.clone().requires_grad_()
        total = divergence(base, y, point).sum()
        (gradient,) = torch.autograd.grad(total, point, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[:, index].sum(), point, retain_graph=True)[0]
            for index in range(y.shape[-1])
        ]
    return torch.stack(rows, dim=1)


def draw(distribution: Distribution, seed: int) -> Tensor:
    """A sample by a seed; distributions of torch draw from the global generator only.

    Parameters
    ----------
    distribution
        The distribution.
    seed
        Seed of the sample; the global generator's state is restored.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return distribution.sample()

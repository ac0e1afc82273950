"""The Fisher matrix of a distribution family in its own parameters: the output-space metric M.

For outputs y of a network (the parameters of a distribution), the Fisher matrix in θ is the mean
over the batch of Jᵀ M J with M = E[∇_y log p ∇_y log pᵀ], closed-form for every family here.
A family is added from outside with :func:`register_metric`, like torch's ``register_kl``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Beta, Categorical, Distribution, Independent, Normal

Tensors = tuple[Tensor, ...]
Family = TypeVar("Family", bound=Distribution)


@dataclass(frozen=True)
class OutputMetric:
    """``multiply(u)`` is M u, sample by sample, for tangents u shaped like ``outputs``."""

    outputs: Tensors
    multiply: Callable[[Tensors], Tensors]


_METRICS: dict[type[Distribution], Callable[..., OutputMetric]] = {}


def register_metric(
    family: type[Family],
) -> Callable[[Callable[[Family], OutputMetric]], Callable[[Family], OutputMetric]]:
    """Decorator: the function gives the :class:`OutputMetric` of distributions of ``family``.

    Subclasses inherit it, nearest class first. ``outputs`` must be tensors that carry the graph;
    inside ``multiply`` use detached values.
    """

    def register(metric: Callable[[Family], OutputMetric]) -> Callable[[Family], OutputMetric]:
        _METRICS[family] = metric
        return metric

    return register


def output_metric(distribution: Distribution) -> OutputMetric:
    """The metric of a distribution by its family. Raises ``TypeError`` where none is registered."""
    for family in type(distribution).__mro__:
        if family in _METRICS:
            return _METRICS[family](distribution)
    known = ", ".join(sorted(family.__name__ for family in _METRICS))
    raise TypeError(
        f"no Fisher metric for {type(distribution).__name__}; known families: {known}. "
        "Add yours with natgrad.curvature.register_metric"
    )


@register_metric(Normal)
def _normal(distribution: Normal) -> OutputMetric:
    # In (μ, σ): E[(∂_μ log p)²] = 1/σ², E[(∂_σ log p)²] = 2/σ², no cross term.
    precision = distribution.scale.detach().square().reciprocal()

    def multiply(tangents: Tensors) -> Tensors:
        location, scale = tangents
        return precision * location, 2 * precision * scale

    return OutputMetric((distribution.loc, distribution.scale), multiply)


@register_metric(Categorical)
def _categorical(distribution: Categorical) -> OutputMetric:
    # In logits: diag(p) − p pᵀ. torch keeps logits normalised, so that pᵀu = 0 for every tangent
    # that comes through the network; the second term keeps M right for any other tangent too.
    probabilities = distribution.probs.detach()

    def multiply(tangents: Tensors) -> Tensors:
        (logits,) = tangents
        weighted = probabilities * logits
        return (weighted - probabilities * weighted.sum(dim=-1, keepdim=True),)

    return OutputMetric((distribution.logits,), multiply)


@register_metric(Bernoulli)
def _bernoulli(distribution: Bernoulli) -> OutputMetric:
    # In logits: p (1 − p).
    probabilities = distribution.probs.detach()
    variance = probabilities * (1 - probabilities)
    return OutputMetric((distribution.logits,), lambda tangents: (variance * tangents[0],))


@register_metric(Beta)
def _beta(distribution: Beta) -> OutputMetric:
    # In (α, β): diag(ψ′(α), ψ′(β)) − ψ′(α + β) 1 1ᵀ, ψ′ the trigamma function.
    alpha, beta = distribution.concentration1, distribution.concentration0
    trigamma_alpha, trigamma_beta, trigamma_sum = (
        torch.polygamma(1, value.detach()) for value in (alpha, beta, alpha + beta)
    )

    def multiply(tangents: Tensors) -> Tensors:
        along_alpha, along_beta = tangents
        shared = trigamma_sum * (along_alpha + along_beta)
        return trigamma_alpha * along_alpha - shared, trigamma_beta * along_beta - shared

    return OutputMetric((alpha, beta), multiply)


@register_metric(Independent)
def _independent(distribution: Independent[Distribution]) -> OutputMetric:
    # Scores of independent components are uncorrelated: the metric is that of the base.
    return output_metric(distribution.base_dist)

"""Closed-form Fisher matrices of the families that policies and likelihoods use."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ComposeTransform,
    Distribution,
    Independent,
    Laplace,
    Multinomial,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Transform,
    TransformedDistribution,
)
from torch.distributions.transforms import IndependentTransform

from natgrad.curvature.metrics.output_metric import (
    OutputMetric,
    Tensors,
    metric_of_divergence,
    output_metric,
    register_metric,
)


@register_metric(Normal)
def _normal(distribution: Normal) -> OutputMetric:
    return _normal_metric(distribution.loc, distribution.scale)


def _normal_metric(location: Tensor, scale: Tensor) -> OutputMetric:
    # In (μ, σ): E[(∂_μ log p)²] = 1/σ², E[(∂_σ log p)²] = 2/σ², no cross term.
    precision = scale.detach().square().reciprocal()

    def multiply(tangents: Tensors) -> Tensors:
        along_location, along_scale = tangents
        return precision * along_location, 2 * precision * along_scale

    return OutputMetric((location, scale), multiply)


@register_metric(Laplace)
def _laplace(distribution: Laplace) -> OutputMetric:
    # In (μ, b): 1/b² each. Its KL contains |x|, whose second derivative autograd returns as 0.
    precision = distribution.scale.detach().square().reciprocal()
    return OutputMetric(
        (distribution.loc, distribution.scale),
        lambda tangents: (precision * tangents[0], precision * tangents[1]),
    )


@register_metric(MultivariateNormal)
def _multivariate_normal(distribution: MultivariateNormal) -> OutputMetric:
    # In (μ, L), Σ = L Lᵀ: Σ⁻¹ for μ. Along dL with A = L⁻¹ dL the form is
    # ½ tr[(Σ⁻¹(dL Lᵀ + L dLᵀ))²] = tr(A A) + tr(A Aᵀ) = ⟨dL, L⁻ᵀ(A + Aᵀ)⟩.
    scale = distribution.scale_tril
    L = scale.detach()

    def multiply(tangents: Tensors) -> Tensors:
        along_location, along_scale = tangents
        location = torch.cholesky_solve(along_location.unsqueeze(-1), L).squeeze(-1)
        # Densities do not read the upper triangle of a scale: it is not a parameter.
        A = torch.linalg.solve_triangular(L, along_scale.tril(), upper=False)
        return location, torch.linalg.solve_triangular(L.mT, A + A.mT, upper=True).tril()

    return OutputMetric((distribution.loc, scale), multiply)


@register_metric(Categorical)
def _categorical(distribution: Categorical) -> OutputMetric:
    # In logits: diag(p) − p pᵀ. torch keeps logits normalised, so that pᵀu = 0 for every tangent
    # from the network; the second term makes M right for any other tangent too.
    return _softmax_metric(distribution.logits, distribution.probs.detach())


def _softmax_metric(logits: Tensor, probabilities: Tensor, trials: int = 1) -> OutputMetric:
    def multiply(tangents: Tensors) -> Tensors:
        weighted = trials * probabilities * tangents[0]
        return (weighted - probabilities * weighted.sum(dim=-1, keepdim=True),)

    return OutputMetric((logits,), multiply)


@register_metric(OneHotCategorical)
def _one_hot(distribution: OneHotCategorical) -> OutputMetric:
    return _softmax_metric(distribution.logits, distribution.probs.detach())


@register_metric(Multinomial)
def _multinomial(distribution: Multinomial) -> OutputMetric:
    # total_count independent draws of a Categorical.
    probabilities = distribution.probs.detach()
    return _softmax_metric(distribution.logits, probabilities, distribution.total_count)


@register_metric(Binomial)
def _binomial(distribution: Binomial) -> OutputMetric:
    # In logits: n p (1 − p).
    probabilities = distribution.probs.detach()
    variance = distribution.total_count * probabilities * (1 - probabilities)
    return OutputMetric((distribution.logits,), lambda tangents: (variance * tangents[0],))


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


@register_metric(TransformedDistribution)
def _transformed(distribution: TransformedDistribution) -> OutputMetric:
    base = without_fixed_bijections(distribution)
    if base is not distribution:
        return output_metric(base)
    moved = _moved_normal(distribution)
    if moved is not None:
        return moved
    if type(distribution) is not TransformedDistribution:
        return metric_of_divergence(distribution)  # HalfNormal, Gumbel, ... are families too
    names = [type(transform).__name__ for transform in distribution.transforms]
    raise TypeError(
        f"no Fisher metric for {type(distribution.base_dist).__name__} transformed by {names}: "
        "transforms must be bijective, and those with learned parameters affine and next to a "
        "Normal; put the parameters into the base distribution, or use register_metric"
    )


def without_fixed_bijections(distribution: Distribution) -> Distribution:
    """Remove the transforms of a distribution if all are bijections without parameters.

    Such transforms (tanh, sigmoid, a fixed affine map) do not change the Fisher matrix.

    Parameters
    ----------
    distribution
        Any distribution.

    Returns
    -------
    Distribution
        The innermost base, or the distribution itself if it has other transforms or none.
    """
    if isinstance(distribution, TransformedDistribution) and all(
        transform.bijective and not _is_learned(transform) for transform in distribution.transforms
    ):
        return without_fixed_bijections(distribution.base_dist)
    return distribution


def _moved_normal(distribution: TransformedDistribution) -> OutputMetric | None:
    """Return the metric of a Normal under learned affine maps, which fixed bijections may follow.

    None for other distributions. The affine maps are merged into location and scale.
    """
    transforms = list(_parts(distribution.transforms))
    learned = [index for index, transform in enumerate(transforms) if _is_learned(transform)]
    base = distribution.base_dist
    while isinstance(base, Independent):
        base = base.base_dist
    if not learned or not isinstance(base, Normal):
        return None
    leading = transforms[: learned[-1] + 1]
    affine = [part for part in leading if isinstance(part, AffineTransform)]
    if len(affine) < len(leading) or not all(transform.bijective for transform in transforms):
        return None
    location, scale = base.loc, base.scale
    for part in affine:
        by = torch.as_tensor(part.scale)
        location, scale = part.loc + by * location, scale * by.abs()
    return _normal_metric(location, scale.expand_as(location))


def _parts(transforms: list[Transform]) -> Iterator[Transform]:
    """Yield transforms one by one, with compositions taken apart."""
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _parts(transform.parts)
        elif isinstance(transform, IndependentTransform):
            yield from _parts([transform.base_transform])
        else:
            yield transform


def _is_learned(value: object) -> bool:
    """Tell whether a transform holds a tensor with a graph, at any depth."""
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, nn.Module):
        return any(parameter.requires_grad for parameter in value.parameters())
    if isinstance(value, (list, tuple)):
        return any(_is_learned(part) for part in value)
    if isinstance(value, (Transform, Distribution)):
        # An inverse holds its transform in _inv, while a transform holds a reference back there.
        # The cache of samples holds graphs, but no parameters.
        skipped = {"_cached_x_y"}
        if not type(value).__name__.startswith("_Inverse"):
            skipped.add("_inv")
        return any(_is_learned(part) for name, part in vars(value).items() if name not in skipped)
    return False

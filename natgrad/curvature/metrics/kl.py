"""KL divergences from logarithms of probabilities, in float64.

torch computes those of a Categorical and a Bernoulli from probabilities, and returns infinity if a
probability underflows: in float32, at a logit of 17 for a Bernoulli, of 104 for a Categorical.
Policies reach such logits while they learn, and their divergence is finite.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
)
from torch.distributions import kl_divergence as torch_kl_divergence
from torch.nn import functional as F

from natgrad.curvature.metrics.output_metric import Distributions


def kl_divergence(old: Distributions, new: Distributions) -> Tensor:
    """Compute KL(old ‖ new) of each batch element.

    Parameters
    ----------
    old
        A distribution, or independent ones in a sequence or mapping, whose divergences add up.
    new
        Distributions in the same structure. The result is differentiable in their parameters.

    Returns
    -------
    Tensor
        The divergences in nats, shaped like the batch. In float64 for Categorical,
        OneHotCategorical, Bernoulli and Normal, and Independent of these, which have closed forms
        here, and for sums; other families are left to torch's ``kl_divergence``.

    Raises
    ------
    NotImplementedError
        If a pair of families has no registered divergence.

    Examples
    --------
    >>> near = Categorical(logits=torch.tensor([200.0, 0.0]))
    >>> float(kl_divergence(near, Categorical(logits=torch.tensor([0.0, 200.0]))))
    200.0
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _total([kl_divergence(old[name], new[name]) for name in old])
    if not isinstance(old, Distribution) or not isinstance(new, Distribution):
        assert not isinstance(old, (Mapping, Distribution))
        assert not isinstance(new, (Mapping, Distribution))
        return _total([kl_divergence(p, q) for p, q in zip(old, new, strict=True)])
    if type(old) is type(new):
        if isinstance(old, Independent) and isinstance(new, Independent):
            inner = old.reinterpreted_batch_ndims
            if inner == new.reinterpreted_batch_ndims:
                elements = kl_divergence(old.base_dist, new.base_dist)
                return elements.flatten(elements.ndim - inner).sum(-1) if inner else elements
        if isinstance(old, Categorical) and isinstance(new, Categorical):
            return _categorical(old, new)
        if isinstance(old, OneHotCategorical) and isinstance(new, OneHotCategorical):
            return _categorical(old._categorical, new._categorical)
        if isinstance(old, Bernoulli) and isinstance(new, Bernoulli):
            return _bernoulli(old, new)
        if isinstance(old, Normal) and isinstance(new, Normal):
            return _normal(old, new)
    return torch_kl_divergence(old, new)


def mean_kl(old: Distributions, new: Distributions) -> Tensor:
    """Compute the mean of KL(old ‖ new) over the batch.

    Parameters
    ----------
    old, new
        As in :func:`kl_divergence`.

    Returns
    -------
    Tensor
        The mean in nats, 0-d float64; values below 0, which are rounding errors, are set to 0.
    """
    return torch.clamp(kl_divergence(old, new).double().mean(), min=0.0)


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.double() for part in parts]).sum(dim=0)


def _log_probabilities(distribution: Categorical | Bernoulli) -> tuple[Tensor, bool]:
    """Return the parameter that the distribution was built from, and whether it is logits.

    ``distribution.logits`` will not do: torch clamps probabilities at eps before it takes logits.
    """
    given: Tensor = distribution._param
    return given.double(), given is not distribution.__dict__.get("probs")


def _categorical(old: Categorical, new: Categorical) -> Tensor:
    log_p, log_q = (
        given.log_softmax(-1) if are_logits else given.log()
        for given, are_logits in (_log_probabilities(old), _log_probabilities(new))
    )
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _bernoulli(old: Bernoulli, new: Bernoulli) -> Tensor:
    (p_yes, p_no), (q_yes, q_no) = (
        (F.logsigmoid(given), F.logsigmoid(-given))
        if are_logits
        else (given.log(), torch.log1p(-given))
        for given, are_logits in (_log_probabilities(old), _log_probabilities(new))
    )
    yes, no = p_yes.exp(), p_no.exp()
    return torch.where(yes > 0, yes * (p_yes - q_yes), 0.0) + torch.where(
        no > 0, no * (p_no - q_no), 0.0
    )


def _normal(old: Normal, new: Normal) -> Tensor:
    scale = new.scale.double()
    ratio = (old.scale.double() / scale).square()
    moved = (old.loc.double() - new.loc.double()) / scale
    return (ratio - 1 - ratio.log() + moved.square()) / 2

"""Strategies for objectives, line searches, rollouts, distributions and networks."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.distribution import DistributionCase
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.cases.objective import Objective
from natgrad.testing.cases.ray import Ray
from natgrad.testing.cases.rollout import Rollout
from natgrad.testing.likelihoods import COMMON, FAMILIES
from natgrad.testing.strategies.linear import SEEDS, spectra

PLAIN = ("mlp", "convolution", "tokens")
CHUNKS = (None, 3, 1, 2, 100)
LENGTHS = (1.0, 0.1, 0.01, 1e-3, 3.0, 30.0)


def objectives(
    kinds: tuple[str, ...] = ("quadratic",),
    *,
    max_size: int = 6,
    max_log10_condition: float = 2.0,
    max_digits: int = 0,
    zero: bool = False,
    at_minimum: bool = False,
) -> st.SearchStrategy[Objective]:
    """Functions of a vector to minimise, in several units.

    Parameters
    ----------
    kinds
        Kinds of :class:`natgrad.testing.cases.objective.Objective` to draw from.
    max_size, max_log10_condition, zero
        The eigenvalues of quadratic ones, as in :func:`spectra`.
    max_digits
        The unit is 10^−d, d an integer from 0 to this. Raise it to find absolute tolerances.
    at_minimum
        Whether the start is the minimum, where the gradient is exactly zero.
    """
    values = spectra(max_size=max_size, max_log10_condition=max_log10_condition, zero=zero)

    def build(kind: str, values: tuple[float, ...], seed: int, digits: int) -> Objective:
        given = (values, seed) if kind == "quadratic" else ((1.0,), 0)
        return Objective(kind, *given, scale=10.0**-digits, at_minimum=at_minimum)

    return st.builds(build, st.sampled_from(kinds), values, SEEDS, st.integers(0, max_digits))


def rays(
    *, lengths: tuple[float, ...] = LENGTHS, max_log10_condition: float = 2.0
) -> st.SearchStrategy[Ray]:
    """Convex functions along a multiple of their negative gradient.

    Parameters
    ----------
    lengths
        The multiples to draw from. Name only those that suit a property which needs a short step.
    max_log10_condition
        Base-10 logarithm of the largest ratio of curvatures.
    """
    curvatures = spectra(max_size=4, max_log10_condition=max_log10_condition)
    return st.builds(Ray, curvatures, st.sampled_from(lengths), SEEDS)


def rollouts(*, max_steps: int = 8) -> st.SearchStrategy[Rollout]:
    """Steps of an environment, each of which may end an episode by termination or truncation.

    Parameters
    ----------
    max_steps
        Largest number of steps.
    """
    return st.builds(Rollout, st.text(".x|", min_size=1, max_size=max_steps), SEEDS)


def distributions(
    families: tuple[str, ...] = tuple(FAMILIES), *, max_batch: int = 5
) -> st.SearchStrategy[DistributionCase]:
    """Distributions whose parameters are functions of outputs (N, 3).

    Parameters
    ----------
    families
        Names of :data:`natgrad.testing.likelihoods.FAMILIES` to draw from.
    max_batch
        Largest N.
    """
    batch = st.integers(1, max_batch)
    return st.builds(DistributionCase, st.sampled_from(families), batch, SEEDS)


def networks(
    kinds: tuple[str, ...] = PLAIN,
    families: tuple[str, ...] = COMMON,
    *,
    chunks: bool = False,
    rows: tuple[int, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
) -> st.SearchStrategy[NetworkCase]:
    """Small networks with data.

    Parameters
    ----------
    kinds
        Kinds of networks, of :mod:`natgrad.testing.networks`, to draw from.
    families
        Names of :data:`natgrad.testing.likelihoods.FAMILIES` to draw from.
    chunks
        Whether to draw sizes of chunks as well. Set it for operators that heed ``chunk_size``.
    rows
        The samples to keep, in this order; None keeps all.
    dtypes
        The dtypes to draw from.
    """
    return st.builds(
        NetworkCase,
        st.sampled_from(kinds),
        st.sampled_from(families),
        SEEDS,
        rows=st.just(rows),
        chunk_size=st.sampled_from(CHUNKS if chunks else (None,)),
        dtype=st.sampled_from(dtypes),
    )

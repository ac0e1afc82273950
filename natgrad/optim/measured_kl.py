"""The KL divergence of a step, measured on the batches that it was made from.

½ dᵀK d is a forecast: exact to second order in d, but for a long step off by any factor. One
forward pass measures the divergence itself.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from natgrad.autodiff.data import length, take
from natgrad.autodiff.side_effects import Forward
from natgrad.curvature.metrics import Distributions, mean_kl
from natgrad.optim.likelihoods import Likelihood
from natgrad.optim.objective import Start, moved
from natgrad.optim.observed_model import Batch, ObservedModel

ATTEMPTS, REFINEMENTS = 30, 2
# The share taken of the length at which the forecast, corrected by measurements, meets the bound.
MARGIN = 0.95


class Shortened(NamedTuple):
    """The ``fraction`` of a step that keeps the bound, 0 if none does, and the ``kl`` there (of the
    last one tried, if none does)."""

    fraction: float
    kl: float


class MeasuredKL:
    """θ ↦ E[KL(p_old ‖ p_θ)], p_old at the parameters as they are at construction, the mean over
    the batches by their lengths.

    The model runs as it did for the gradient: the same dropout, no trace in buffers and generators.
    With ``chunk_size`` memory is independent of the batch. Cost: a forward pass of each batch for
    p_old, unless the model's outputs were kept (``Batch.kept_output``), and one for each call.
    """

    def __init__(
        self,
        observed: ObservedModel,
        likelihood: Likelihood,
        start: Start,
        chunk_size: int | None = None,
    ) -> None:
        self._observed, self._likelihood, self._start = observed, likelihood, start
        self._chunk_size = chunk_size
        self._batches = observed.required_batches()
        with torch.no_grad():
            self._old = [self._known(batch) for batch in self._batches]

    def __call__(self, theta: Tensor) -> float:
        """At θ (n,) of the step's parameters, which are ``start.theta`` before and after."""
        total, samples = 0.0, 0
        with moved(self._start.parameters, theta, self._start.theta), torch.no_grad():
            for batch, old in zip(self._batches, self._old, strict=True):
                for (p, count), (q, _) in zip(old, self._distributions(batch), strict=True):
                    total += count * float(mean_kl(p, q))
                    samples += count
        return total / samples

    def shortened(self, origin: Tensor, step: Tensor, max_kl: float) -> Shortened:
        """An origin + f · step, f <= 1, with a KL of at most ``max_kl``: the whole step where that
        keeps it, else one of at least half of ``max_kl``, where ``REFINEMENTS`` find it.

        f follows the measurements, as if the KL were a power of f. Cost: one call where the whole
        step keeps the bound, two to four mostly, ``ATTEMPTS`` at most.
        """
        low, high = Shortened(0.0, math.nan), Shortened(math.inf, math.inf)
        fraction, refinements = 1.0, 0
        for _ in range(ATTEMPTS):
            tried = Shortened(fraction, self(origin + fraction * step))
            if tried.kl <= max_kl:
                low = tried
                if math.isinf(high.fraction) or tried.kl >= max_kl / 2:
                    break
            else:  # NaN included
                high = tried
            if low.fraction:
                if refinements == REFINEMENTS:
                    break
                refinements += 1
            fraction = _next_fraction(low, high, max_kl)
        return low if low.fraction else Shortened(0.0, high.kl)

    def _known(self, batch: Batch) -> list[tuple[Distributions, int]]:
        dtype = self._start.theta.dtype
        kept = None if self._chunk_size is not None else batch.kept_output(dtype)
        if kept is None:
            return list(self._distributions(batch))
        data, _ = batch.split()
        return [(self._detached(kept), length(data))]

    def _distributions(self, batch: Batch) -> list[tuple[Distributions, int]]:
        found = []
        with self._observed.replayed(batch) as (call, data):
            samples = length(data)
            forward = Forward(call, self._start.theta.device)
        with forward.replayed():
            step = self._chunk_size or max(samples, 1)
            for begin in range(0, samples, step):
                chunk = take(data, slice(begin, begin + step))
                found.append((self._detached(forward.evaluate(chunk)), length(chunk)))
        return found

    def _detached(self, outputs: object) -> Distributions:
        # A copy: a distribution may share memory with a parameter that a candidate overwrites.
        return copy.deepcopy(self._likelihood(outputs))


def _next_fraction(low: Shortened, high: Shortened, max_kl: float) -> float:
    """The f at which a power of f through the known points meets the bound: through 0 and ``high``,
    with the exponent 2, or through ``low``, which keeps the bound, and ``high``, which does not."""
    measured = math.isfinite(high.kl)
    if not low.fraction:
        ratio = MARGIN * math.sqrt(max_kl / high.kl) if measured else 0.0
        return high.fraction * max(ratio, 0.1)
    if not measured or not low.kl > 0:
        return math.sqrt(low.fraction * high.fraction)
    exponent = math.log(high.kl / low.kl) / math.log(high.fraction / low.fraction)
    return low.fraction * math.pow(MARGIN * max_kl / low.kl, 1 / exponent)

"""Backward passes whose output gradients give a Fisher matrix, exactly or from drawn labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from natgrad.autodiff.layers import Layer, output_gradients
from natgrad.curvature.kronecker.blocks import NonFiniteFactors
from natgrad.curvature.metrics import Distributions, batch_shape, output_metric, root_outputs
from natgrad.curvature.metrics.families import without_fixed_bijections


def checked_outputs(distribution: Distributions, samples: int | None) -> tuple[Tensor, ...]:
    """Return the outputs that are a distribution's parameters, if factors can be taken of them.

    Parameters
    ----------
    distribution
        The model's distribution with its graph.
    samples
        The number of labels to draw; None for exact factors.

    Raises
    ------
    ValueError
        If the batch is empty, if it has several dimensions and factors are to be exact, or if no
        output carries a graph.
    NonFiniteFactors
        If an output is NaN.
    """
    batch = batch_shape(distribution)
    if not math.prod(batch):
        raise ValueError("the batch is empty: the mean over no samples is undefined")
    if samples is None and len(batch) != 1:
        raise ValueError(
            f"exact factors need a batch of one dimension, got {batch}: elements of one "
            "sample may share activations. Pass samples=1 and a generator"
        )
    outputs = output_metric(distribution).outputs
    if any(bool(torch.isnan(output).any()) for output in outputs):
        raise NonFiniteFactors("the model's outputs hold NaN: there is nothing to draw from")
    if not any(output.requires_grad for output in outputs):
        raise ValueError("the distribution carries no graph; compute it with gradients enabled")
    return outputs


class OutputGradients:
    """Output gradients g (N, R, d_out) of the layers, in one backward pass after another.

    Σ g gᵀ over the passes, divided by ``divisor``, is the mean over the batch.

    Parameters
    ----------
    distribution
        The model's distribution with its graph.
    layers
        The layers, with their calls.
    samples
        The number of labels to draw for a batch element, one pass each. None: exact, by the square
        root of the output metric, one pass for each output parameter.
    generator
        Draws the labels.
    """

    def __init__(
        self,
        distribution: Distributions,
        layers: list[Layer],
        samples: int | None,
        generator: torch.Generator | None,
    ) -> None:
        self._distribution, self._layers = distribution, layers
        self.samples, self._generator = samples, generator
        self.divisor = float(math.prod(batch_shape(distribution))) * (samples or 1)

    def passes(self, *, masked: bool) -> Iterator[list[Tensor]]:
        """Yield the output gradients of all layers, pass by pass.

        With ``masked``, they are zero at an embedding's padding, which has no gradient.
        """
        scalars = self._exact() if self.samples is None else self.sampled()
        for scalar in scalars:
            found = output_gradients(scalar, self._layers)
            yield [
                layer.gradients(gradients, masked=masked)
                for layer, gradients in zip(self._layers, found, strict=True)
            ]

    def _exact(self) -> Iterator[Tensor]:
        """Yield one scalar for each output parameter: the sum of its root outputs."""
        with torch.enable_grad():
            outputs = root_outputs(self._distribution)
            sums = [column.sum() for column in outputs.unbind(dim=1)]
        yield from sums

    def sampled(self) -> Iterator[Tensor]:
        """Yield, for each pass, Σ over the batch of log p of a label drawn from the model."""
        assert self.samples is not None
        assert self._generator is not None
        for _ in range(self.samples):
            # Distributions sample from the global generators only: seed these from the generator.
            device = self._generator.device
            seed = int(torch.randint(2**62, (), generator=self._generator, device=device))
            with torch.random.fork_rng(), torch.enable_grad():
                torch.manual_seed(seed)
                scalar = _log_prob_of_sample(self._distribution)
            yield scalar


def _log_prob_of_sample(distribution: Distributions) -> Tensor:
    if isinstance(distribution, Mapping):
        return torch.stack([_log_prob_of_sample(part) for part in distribution.values()]).sum()
    if isinstance(distribution, Independent):
        return _log_prob_of_sample(distribution.base_dist)
    if isinstance(distribution, Distribution):
        # Draw from the base: a sample that tanh rounds to 1 cannot be mapped back.
        base = without_fixed_bijections(distribution)
        if base is not distribution:
            return _log_prob_of_sample(base)
        return distribution.log_prob(distribution.sample()).sum()
    return torch.stack([_log_prob_of_sample(part) for part in distribution]).sum()

"""Outputs in which the metric is the identity: y′ = Sᵀ y with M = S Sᵀ, sample by sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.curvature.metrics.output_metric import Distributions, batch_shape, output_metric


def root_outputs(distribution: Distributions) -> Tensor:
    """A tensor (N, C) with the graph of the distribution whose Jacobian J̃ gives F = J̃ᵀJ̃ / N.

    N counts the batch, flattened, and C the distribution's parameters for one element; S is held
    fixed. What it is good for: sample-space solves (:class:`natgrad.curvature.Gram`) and exact
    Kronecker factors need the square root of the metric, and no product needs it.

    Cost: C products with M, an eigendecomposition (C, C) a sample in float64, N C² memory. Raises
    ``ValueError`` where a distribution's parameters are not shaped (batch, ...).
    """
    metric = output_metric(distribution)
    batch = batch_shape(distribution)
    samples = math.prod(batch)
    for output in metric.outputs:
        if tuple(output.shape[: len(batch)]) != batch:
            raise ValueError(
                f"expected parameters with leading dimensions {batch}, got {tuple(output.shape)}; "
                "expand them to the batch first"
            )
    sizes = [output.numel() // max(samples, 1) for output in metric.outputs]
    flat = torch.cat([output.reshape(samples, -1) for output in metric.outputs], dim=1)
    width = flat.shape[1]

    def multiply(column: int) -> Tensor:
        basis = torch.zeros_like(flat)
        basis[:, column] = 1
        tangents = tuple(
            piece.reshape(output.shape)
            for piece, output in zip(torch.split(basis, sizes, dim=1), metric.outputs, strict=True)
        )
        return torch.cat([u.reshape(samples, -1) for u in metric.multiply(tangents)], dim=1)

    with torch.no_grad():
        matrices = torch.stack([multiply(column) for column in range(width)], dim=2).double()
        eigenvalues, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
        root = (vectors * torch.clamp(eigenvalues, min=0.0).sqrt().unsqueeze(1)).to(flat.dtype)
    return torch.einsum("ncd,nc->nd", root, flat)

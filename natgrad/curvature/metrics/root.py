"""Outputs y′ = Sᵀy whose metric is the identity, with M = S Sᵀ, sample by sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.curvature.metrics.output_metric import Distributions, batch_shape, output_metric


def root_outputs(distribution: Distributions) -> Tensor:
    """Return outputs (N, C) whose Jacobian J̃ gives the Fisher matrix as F = J̃ᵀJ̃ / N.

    Solves in the space of samples (:class:`natgrad.curvature.Gram`) and exact Kronecker factors
    need this square root of the metric; products with F do not.

    Parameters
    ----------
    distribution
        A distribution with its graph, or independent ones in a sequence or mapping, with N elements
        in the batch and C parameters for each.

    Returns
    -------
    Tensor
        y′ = Sᵀy (N, C) with the graph of the outputs y, the batch flattened. S is held fixed.

    Raises
    ------
    ValueError
        If a distribution's parameters are not shaped (batch, ...).

    Notes
    -----
    Cost: C products with M, an eigendecomposition (C, C) a sample in float64, N C² memory.
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

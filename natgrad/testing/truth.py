"""Dense curvature by its definition and plain autograd, for comparison with operators.

The argument ``case`` of each function is a :class:`NetworkCase`: a network, its data and the family
of its outputs. Matrices (n, n) have a row for each entry of ``case.parameters``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.likelihoods import FAMILIES, NATURAL, divergence, metric


def jacobian(case: NetworkCase) -> Tensor:
    """The Jacobian J (N, C, n) of the outputs."""
    with torch.enable_grad():
        outputs = case.model(case.inputs)
    return _rows(case, outputs.reshape(-1)).reshape(*outputs.shape, -1)


def fisher(case: NetworkCase) -> Tensor:
    """The Fisher matrix Σ wᵢ Jᵢᵀ Mᵢ Jᵢ / Σ wᵢ, M the family's metric; a "sum" is not divided."""
    J, M = jacobian(case), metric(case.family, case.model(case.inputs))
    return _reduced(case, J.mT @ M @ J)


def expected_scores(case: NetworkCase) -> Tensor:
    """The Fisher matrix as Σ wᵢ E[∇log p ∇log pᵀ] / Σ wᵢ, over all labels or by Gauss-Hermite."""
    with torch.enable_grad():
        outputs = case.model(case.inputs)
    labels, probabilities = _labels(case.family, outputs.detach())
    total = outputs.new_zeros(len(outputs), case.n, case.n)
    for label, probability in zip(labels, probabilities, strict=True):
        with torch.enable_grad():
            log_probs = FAMILIES[case.family](outputs).log_prob(label)
        scores = _rows(case, log_probs)
        total += probability.view(-1, 1, 1) * scores.unsqueeze(2) * scores.unsqueeze(1)
    return _reduced(case, total)


def kl_hessian(case: NetworkCase) -> Tensor:
    """The Fisher matrix as ∇² of the mean KL(p_old ‖ p_θ) at θ_old, through the network."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs = case.model(case.inputs)
        each = divergence(case.family, outputs.detach(), outputs)
        weights = torch.ones_like(each) if case.weights is None else case.weights
        total = (weights * each).sum()
    return _hessian(case, total / (1 if case.reduction == "sum" else weights.sum()))


def gauss_newton(case: NetworkCase) -> Tensor:
    """The generalised Gauss-Newton matrix Jᵀ ∇²_y loss J.

    Raises
    ------
    ValueError
        If the loss is not convex in the outputs.
    """
    if case.family not in NATURAL:
        raise ValueError(f"the loss of {case.family} is not convex in the outputs")
    with torch.enable_grad():
        point = case.model(case.inputs).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            case.criterion(point, case.targets), point, create_graph=True
        )
        rows = [
            torch.autograd.grad(entry, point, retain_graph=True)[0].reshape(-1)
            for entry in gradient.reshape(-1)
        ]
    J = jacobian(case).flatten(0, 1)
    return J.mT @ torch.stack(rows) @ J


def hessian(case: NetworkCase) -> Tensor:
    """The Hessian ∇² loss."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        loss = case.loss(case.inputs, case.targets)
    return _hessian(case, loss)


def empirical_fisher(case: NetworkCase) -> Tensor:
    """The empirical Fisher matrix Σ wᵢ gᵢ gᵢᵀ / Σ wᵢ, gᵢ the gradient of log p of the label."""
    with torch.enable_grad():
        log_probs = case.log_probs(case.inputs, case.targets)
    g = _rows(case, log_probs)
    return _reduced(case, g.unsqueeze(2) * g.unsqueeze(1))


TRUTHS = {
    "fisher": fisher,
    "gauss_newton": gauss_newton,
    "hessian": hessian,
    "empirical_fisher": empirical_fisher,
}


def blocks(case: NetworkCase, dense: Tensor) -> Tensor:
    """A matrix with zeros outside its diagonal blocks, one for each module with parameters.

    Parameters
    ----------
    case
        The network.
    dense
        The matrix (n, n).
    """
    owner = {
        id(parameter): index
        for index, module in enumerate(case.model.modules())
        for parameter in module.parameters(recurse=False)
    }
    of_row = torch.cat([torch.full((p.numel(),), owner[id(p)]) for p in case.parameters])
    return dense * (of_row.unsqueeze(0) == of_row.unsqueeze(1))


def _reduced(case: NetworkCase, each: Tensor) -> Tensor:
    weights = each.new_ones(len(each)) if case.weights is None else case.weights
    total = torch.einsum("n,nij->ij", weights, each)
    return total if case.reduction == "sum" else total / weights.sum()


def _rows(case: NetworkCase, outputs: Tensor) -> Tensor:
    """∂outputs/∂parameters (m, n) of outputs (m,); zero for frozen and unused parameters."""
    return torch.stack([_flat(case, output) for output in outputs])


def _hessian(case: NetworkCase, scalar: Tensor) -> Tensor:
    trained = [parameter for parameter in case.parameters if parameter.requires_grad]
    gradient = torch.autograd.grad(scalar, trained, create_graph=True, allow_unused=True)
    by_parameter = dict(zip(map(id, trained), gradient, strict=True))
    rows = []
    for parameter in case.parameters:
        piece = by_parameter.get(id(parameter))
        if piece is None or not piece.requires_grad:
            rows += [torch.zeros(case.n, dtype=case.dtype)] * parameter.numel()
        else:
            rows += [_flat(case, entry) for entry in piece.reshape(-1)]
    return torch.stack(rows)


def _flat(case: NetworkCase, scalar: Tensor) -> Tensor:
    trained = [parameter for parameter in case.parameters if parameter.requires_grad]
    found = torch.autograd.grad(scalar, trained, retain_graph=True, allow_unused=True)
    by_parameter = dict(zip(map(id, trained), found, strict=True))
    pieces = []
    for parameter in case.parameters:
        piece = by_parameter.get(id(parameter))
        pieces.append(torch.zeros_like(parameter) if piece is None else piece)
    return torch.cat([piece.reshape(-1) for piece in pieces]).detach()


def _labels(family: str, y: Tensor) -> tuple[list[Tensor], Tensor]:
    """Labels (N, ...) and their probabilities (labels, N).

    For normal distributions they are nodes and weights of a quadrature that is exact to degree
    five; squared scores are polynomials of degree four.
    """
    if family == "categorical":
        classes = y.shape[-1]
        every = [torch.full((len(y),), index) for index in range(classes)]
        return every, y.softmax(-1).mT
    if family == "bernoulli":
        each = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=y.dtype)] * y.shape[-1])
        every = [row.expand_as(y) for row in each]
        chances = [FAMILIES[family](y).log_prob(label).exp() for label in every]
        return every, torch.stack(chances)
    if family not in ("gaussian", "mse"):
        raise ValueError(f"no quadrature for {family}")
    import numpy as np

    nodes, weights = map(torch.tensor, np.polynomial.hermite_e.hermegauss(3))
    weights = weights / weights.sum()
    location, scale = (
        (y, torch.ones_like(y)) if family == "mse" else (y[:, :2], F.softplus(y[:, 1:]))
    )
    dims = location.shape[-1]
    grid = torch.cartesian_prod(*[nodes] * dims).to(y.dtype)
    shares = torch.cartesian_prod(*[weights] * dims).prod(dim=1).to(y.dtype)
    return [location + scale * node for node in grid], shares.unsqueeze(1).expand(-1, len(y))

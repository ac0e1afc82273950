"""Adapters for the operators of curvlinops."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.likelihoods import NATURAL
from natgrad.testing.subjects.curvature import Curvature, Kronecker

MATRICES = {
    "GGNLinearOperator": "gauss_newton",
    "HessianLinearOperator": "hessian",
    "EFLinearOperator": "empirical_fisher",
    "FisherMCLinearOperator": "gauss_newton",
}
FACTORED = ("KFACLinearOperator", "EKFACLinearOperator")
# Its K-FAC supports neither embeddings nor 1-D convolutions.
LAYERS = ("mlp", "linear", "unused")


def adapt(name: str, _: Any) -> Curvature | Kronecker:
    """A subject of an operator's name.

    Parameters
    ----------
    name
        The name of the class.
    _
        The class itself, ignored.

    Raises
    ------
    ValueError
        If the operator is neither curvature nor its Kronecker factors.
    """
    if name in MATRICES:
        return curvature(name)
    if name in FACTORED:
        return kronecker(name)
    raise ValueError(f"expected one of {[*MATRICES, *FACTORED]}, got {name}")


def curvature(name: str) -> Curvature:
    """A curvature operator; ``chunk_size`` becomes the size of its batches.

    Parameters
    ----------
    name
        A name in :data:`MATRICES`.
    """

    def make(case: NetworkCase) -> Any:
        settings = {}
        if name == "FisherMCLinearOperator":
            settings = {"mc_samples": case.draws, "seed": case.draw_seed}
        return _operator(name, case, **settings)

    # It refuses models that draw random numbers, and fails in fused kernels.
    traits = ["chunks", "forward", "sum"]
    traits += ["sampled"] if name == "FisherMCLinearOperator" else []
    families = ("categorical",) if name == "EFLinearOperator" else NATURAL
    return Curvature.of(make, MATRICES[name], traits, families=families, name=f"curvlinops.{name}")


def kronecker(name: str, *, exact: bool = True) -> Kronecker:
    """A Kronecker-factored operator.

    Parameters
    ----------
    name
        KFACLinearOperator or EKFACLinearOperator.
    exact
        Whether expectations are over all labels; otherwise it draws ``case.draws`` labels a
        sample.
    """

    def make(case: NetworkCase) -> Any:
        types = importlib.import_module("curvlinops").FisherType
        kind = types.TYPE2 if exact else types.MC
        operator = _operator(
            name,
            case,
            fisher_type=kind,
            mc_samples=case.draws,
            seed=case.draw_seed,
            separate_weight_and_bias=False,
            num_per_example_loss_terms=1,
        )
        operator.compute_kronecker_factors()
        # Its mean square error averages over elements, and lacks the ½ of −log p.
        factor = case.terms / len(case.targets) / (2 if case.family == "mse" else 1)
        return factor * operator

    traits = [] if exact else ["sampled"]
    traits += ["corrected"] if name.startswith("E") else []
    return Kronecker.of(
        make, traits, families=("categorical", "mse"), kinds=LAYERS, name=f"curvlinops.{name}"
    )


def _operator(name: str, case: NetworkCase, **settings: Any) -> Any:
    size = case.chunk_size or len(case.targets)
    data: list[tuple[Tensor, Tensor]] = list(
        zip(torch.split(case.inputs, size), torch.split(case.targets, size), strict=True)
    )
    criterion = {
        "categorical": nn.CrossEntropyLoss,
        "mse": nn.MSELoss,
        "bernoulli": nn.BCEWithLogitsLoss,
    }[case.family](reduction=case.reduction)
    return getattr(importlib.import_module("curvlinops"), name)(
        case.model,
        criterion,
        case.parameters,
        data,
        num_data=len(case.targets),
        check_deterministic=False,
        **settings,
    )

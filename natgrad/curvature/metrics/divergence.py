"""The Fisher matrix of any family with a KL divergence: its Hessian in output space.

∇²_q KL(p ‖ q) at q = p is the Fisher matrix where the divergence is twice differentiable there and
the support does not move with the parameters. Neither can be read from a class (autograd's Hessian
of Laplace's |x| is 0, torch's KL of two Uniforms is smooth or infinite), so that a second
difference of the divergence itself has to agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

Tensors = tuple[Tensor, ...]
AGREEMENT = 1e-2


def divergence_hessian(
    distribution: Distribution,
) -> tuple[Tensors, Callable[[Tensors], Tensors]] | None:
    """The distribution's parameters that carry a graph, and u ↦ M u; None without a KL.

    Raises ``TypeError`` where the Hessian of the KL is not the Fisher matrix. Cost: one double
    backward pass through the divergence, in output space only, and two evaluations of it.
    """
    values = _constructor_values(distribution)
    names = [name for name, value in values.items() if _carries_graph(value)]
    if not names:
        return None
    try:
        hessian = _hessian(type(distribution), values, names)
    except NotImplementedError:
        return None
    _check(type(distribution), values, names)
    return tuple(values[name] for name in names), hessian


def _hessian(
    family: type[Distribution], values: dict[str, Tensor], names: list[str]
) -> Callable[[Tensors], Tensors]:
    fixed = _detached(values)
    with torch.enable_grad():
        point = [fixed[name].clone().requires_grad_() for name in names]
        divergence = _divergence(family, fixed, dict(zip(names, point, strict=True))).sum()
        gradients = torch.autograd.grad(divergence, point, create_graph=True, allow_unused=True)
    reached = [gradient for gradient in gradients if gradient is not None]

    def multiply(tangents: Tensors) -> Tensors:
        along = [
            tangent
            for tangent, gradient in zip(tangents, gradients, strict=True)
            if gradient is not None
        ]
        products = torch.autograd.grad(
            reached, point, along, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return tuple(products)

    return multiply


def _check(family: type[Distribution], values: dict[str, Tensor], names: list[str]) -> None:
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in _detached(values).items()
    }
    directions = tuple(torch.where(wide[name] == 0, 1.0, wide[name]) for name in names)
    product = _hessian(family, wide, names)(directions)
    expected = torch.stack(
        [(u * Mu).sum() for u, Mu in zip(directions, product, strict=True)]
    ).sum()
    for width in (1e-3, 1e-6):  # the narrower where the wider leaves the parameters' domain
        sides = [
            {
                name: wide[name] + side * width * direction
                for name, direction in zip(names, directions, strict=True)
            }
            for side in (-1, 1)
        ]
        both = torch.stack([_divergence(family, wide, side).sum() for side in sides])
        second_difference = both.sum() / width**2
        if bool(torch.isfinite(second_difference)):
            if bool((second_difference - expected).abs() <= AGREEMENT * second_difference.abs()):
                return
            break
    raise TypeError(
        f"no Fisher metric for {family.__name__}: the Hessian of its KL divergence is not its "
        "Fisher matrix (its support moves with its parameters, or the divergence has a kink); add "
        "the matrix with natgrad.curvature.register_metric"
    )


def _divergence(
    family: type[Distribution], values: dict[str, Tensor], moved: dict[str, Tensor]
) -> Tensor:
    make: Callable[..., Distribution] = family
    old = make(**values, validate_args=False)
    new = make(**{**values, **moved}, validate_args=False)
    divergence: Tensor = kl_divergence(old, new)
    return divergence


def _constructor_values(distribution: Distribution) -> dict[str, Tensor]:
    """What the constructor would need to build the same distribution again."""
    kept = vars(distribution)
    values = {}
    for name in inspect.signature(type(distribution).__init__).parameters:
        if name in kept:
            values[name] = kept[name]
        elif isinstance(getattr(type(distribution), name, None), property):
            values[name] = getattr(distribution, name)  # held by a base distribution
    if "logits" in values:  # torch fills in the other one when it is asked for
        values.pop("probs", None)
    return values


def _detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def _carries_graph(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad

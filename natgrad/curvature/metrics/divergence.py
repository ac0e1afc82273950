"""The Fisher matrix of any family with a KL divergence, as its Hessian in output space.

∇²_q KL(p ‖ q) at q = p is the Fisher matrix if the divergence is twice differentiable there and the
support does not move with the parameters. A class does not tell (autograd's Hessian of Laplace's
|x| is 0, torch's KL of two Uniforms is smooth or infinite), so the Hessian is verified against a
second difference of the divergence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

Tensors = tuple[Tensor, ...]
TOLERANCE = 0.05  # relative, of second differences
# Families verified before, with the names of the parameters that were differentiated in.
_VERIFIED: set[tuple[type[Distribution], tuple[str, ...]]] = set()


class NoHessian(Exception):
    """A family's Fisher matrix cannot be computed from its divergence; the message says why."""


def divergence_hessian(
    distribution: Distribution,
) -> tuple[Tensors, Callable[[Tensors], Tensors]]:
    """Return the distribution's parameters that carry a graph, and the product u ↦ M u.

    Parameters
    ----------
    distribution
        Of a family with a registered KL divergence, whose constructor's arguments are attributes.

    Raises
    ------
    NoHessian
        If there is no divergence, or its Hessian is not the Fisher matrix.

    Notes
    -----
    Cost: one double backward pass through the divergence a product, in output space only; some
    evaluations of the divergence for the first distribution of a class.
    """
    family, values = type(distribution), _constructor_values(distribution)
    names = tuple(name for name, value in values.items() if _carries_graph(value))
    if not values or any(isinstance(value, Distribution) for value in values.values()):
        raise NoHessian("its parameters are not attributes named as its constructor's arguments")
    if not names:
        return (), lambda tangents: tangents
    hessian = _hessian(family, values, names)
    if (family, names) not in _VERIFIED:
        _verify(family, values, names)
        _VERIFIED.add((family, names))
    return tuple(values[name] for name in names), hessian


def _hessian(
    family: type[Distribution], values: dict[str, Tensor], names: Sequence[str]
) -> Callable[[Tensors], Tensors]:
    fixed = _detached(values)
    with torch.enable_grad():
        point = [fixed[name].clone().requires_grad_() for name in names]
        divergence = _divergence(family, fixed, dict(zip(names, point, strict=True))).sum()
        if not divergence.requires_grad:
            raise NoHessian("its KL divergence cannot be differentiated in its parameters")
        gradients = torch.autograd.grad(divergence, point, create_graph=True, allow_unused=True)
    nonlinear = [index for index, gradient in enumerate(gradients) if _carries_graph(gradient)]
    recorded = [gradients[index] for index in nonlinear]

    def multiply(tangents: Tensors) -> Tensors:
        along = [tangents[index] for index in nonlinear]
        products = torch.autograd.grad(
            recorded, point, along, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return tuple(products)

    return multiply


def _verify(family: type[Distribution], values: dict[str, Tensor], names: Sequence[str]) -> None:
    """Raise :class:`NoHessian` unless the Hessian agrees with a second difference somewhere.

    A kink or a moving support spoils every element of the batch, rounding only some: one element
    that agrees is enough.
    """
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in _detached(values).items()
    }
    directions = tuple(_direction(name, wide[name]) for name in names)
    product = _hessian(family, wide, names)(directions)
    for width in (1e-2, 1e-3, 1e-6):  # narrow steps if wide ones leave the domain
        sides = [
            {
                name: wide[name] + side * width * direction
                for name, direction in zip(names, directions, strict=True)
            }
            for side in (-1, 1)
        ]
        both = torch.stack([_divergence(family, wide, side) for side in sides])
        second_difference = both.sum(dim=0) / width**2
        expected = torch.zeros_like(second_difference)
        for u, Mu in zip(directions, product, strict=True):
            event = (u * Mu).reshape(*second_difference.shape, -1)
            expected = expected + event.sum(dim=-1)
        close = (second_difference - expected).abs() <= TOLERANCE * second_difference.abs()
        if bool((close & torch.isfinite(second_difference) & (second_difference > 0)).any()):
            return
    raise NoHessian(
        "the Hessian of its KL divergence is not its Fisher matrix (its support moves with its "
        "parameters, or the divergence has a kink)"
    )


def _direction(name: str, value: Tensor) -> Tensor:
    """Return a direction scaled so that small steps along it stay in the parameter's domain."""
    if name == "probs":
        return value * (1 - value)
    return torch.where(value == 0, 1.0, value)


def _divergence(
    family: type[Distribution], values: dict[str, Tensor], moved: dict[str, Tensor]
) -> Tensor:
    old, new = (_build(family, arguments) for arguments in (values, {**values, **moved}))
    try:
        divergence: Tensor = kl_divergence(old, new)
    except NotImplementedError as error:
        raise NoHessian(
            "torch knows no KL divergence of it with itself (torch.distributions.register_kl adds "
            "one)"
        ) from error
    return divergence


def _build(family: type[Distribution], values: dict[str, Tensor]) -> Distribution:
    make: Callable[..., Distribution] = family
    unchecked = {"validate_args": False}
    if "validate_args" not in inspect.signature(family.__init__).parameters:
        unchecked = {}
    try:
        return make(**values, **unchecked)
    except Exception as error:
        raise NoHessian(
            f"it cannot be built again from its attributes {sorted(values)} ({error})"
        ) from error


def _constructor_values(distribution: Distribution) -> dict[str, Tensor]:
    """Return the arguments with which the constructor builds the same distribution again."""
    family, kept = type(distribution), vars(distribution)
    names = list(inspect.signature(family.__init__).parameters)[1:]
    values = {name: kept[name] for name in names if name in kept}
    if not values:  # a base distribution holds them, and properties give them
        properties = [name for name in names if isinstance(getattr(family, name, None), property)]
        values = {name: getattr(distribution, name) for name in properties}
    if "logits" in values:  # torch computes probs on demand; constructors take one of the two
        values.pop("probs", None)
    return values


def _detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def _carries_graph(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad

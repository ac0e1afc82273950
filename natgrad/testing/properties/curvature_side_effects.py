"""Curvature matrices: side effects, dropout and gradient modes. O9, O15, O16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing import algebra
from natgrad.testing.agreement import ROUNDING, assert_equal
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import SEEDS
from natgrad.testing.subjects.curvature import Curvature, suited

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@check(
    "O9",
    Kind.CURVATURE,
    "building and multiplying leave .grad as it was, None or a value",
    tolerance="none",
    case=suited(),
    held=st.booleans(),
    cost=5,
)
def gradients_are_left_alone(subject: Curvature, case: NetworkCase, held: bool) -> None:
    before: list[Tensor | None] = [None] * len(case.parameters)
    if held:
        before = [torch.ones_like(parameter) for parameter in case.parameters]
        for parameter, value in zip(case.parameters, before, strict=True):
            assert value is not None
            parameter.grad = value.clone()
    subject.build(case) @ case.vectors(2)
    for index, (parameter, value) in enumerate(zip(case.parameters, before, strict=True)):
        if value is None:
            assert parameter.grad is None, f".grad of parameter {index} was set"
        else:
            same = parameter.grad is not None and torch.equal(parameter.grad, value)
            assert same, f".grad of parameter {index} was changed"


@check(
    "O9c",
    Kind.CURVATURE,
    "building and multiplying leave the global generator where it was",
    tolerance="none",
    case=suited(),
    cost=5,
)
def the_global_generator_is_left_alone(subject: Curvature, case: NetworkCase) -> None:
    _assert_generator_left_alone(subject, case)


@check(
    "O9g",
    Kind.CURVATURE,
    "so they do in dropout, whose masks they draw",
    tolerance="none",
    needs=["random"],
    case=suited(("dropout",)),
    cost=8,
)
def dropout_leaves_the_global_generator_alone(subject: Curvature, case: NetworkCase) -> None:
    _assert_generator_left_alone(subject, case)


def _assert_generator_left_alone(subject: Curvature, case: NetworkCase) -> None:
    _ = case.inputs, case.targets
    before = torch.get_rng_state()
    A = subject.build(case)
    if "forward" in subject.offers or case.network != "dropout":  # else the caller ran the model
        assert torch.equal(torch.get_rng_state(), before), "building advanced the global generator"
    before = torch.get_rng_state()
    A @ case.vectors(2)
    assert torch.equal(torch.get_rng_state(), before), "a product advanced the global generator"


def stateful(subject: Curvature) -> st.SearchStrategy[NetworkCase]:
    """Networks with batch normalisation, and with dropout where the subject supports it."""
    return suited(("normalised", *(["dropout"] if "random" in subject.offers else [])))(subject)


@check(
    "O9d",
    Kind.CURVATURE,
    "requires_grad, training mode, hooks and the values of parameters and buffers stay, those of "
    "batch normalisation too",
    tolerance="none",
    found=[
        "functorch#273, #867: batch normalisation in training mode is an error under its "
        "transforms, and so in curvlinops 3.0.1",
    ],
    case=stateful,
    cost=5,
)
def the_model_is_left_alone(subject: Curvature, case: NetworkCase) -> None:
    for training in (True, False):
        case.model.train(training)
        before = _state(case)
        flags, hooks = _flags(case), _hooks(case)
        A = subject.build(case)
        if "forward" not in subject.offers:  # the caller ran the model
            before = _state(case)
        A @ case.vectors(2)
        for name, value in _state(case).items():
            assert torch.equal(value, before[name]), f"{name} was changed"
        assert _flags(case) == flags, "requires_grad or training mode was changed"
        assert _hooks(case) == hooks, "a hook was left on the model"


@check(
    "O9e",
    Kind.CURVATURE,
    "a product leaves v, the data and the gradient mode, and is new memory without a graph",
    tolerance="none",
    case=suited(),
    seed=SEEDS,
    grad=st.booleans(),
    cost=5,
)
def a_product_is_a_product(subject: Curvature, case: NetworkCase, seed: int, grad: bool) -> None:
    inputs, targets = case.inputs.clone(), case.targets.clone()
    A = subject.build(case)
    with torch.set_grad_enabled(grad):
        algebra.assert_unwritten(A, case.vectors(1, seed)[:, 0])
        assert torch.is_grad_enabled() == grad, "the gradient mode was changed"
    assert torch.equal(case.inputs, inputs), "the inputs were written to"
    assert torch.equal(case.targets, targets), "the targets were written to"


@check(
    "O15",
    Kind.CURVATURE,
    "under dropout all products see the same masks: bit for bit the same, and symmetric",
    tolerance="2^14 eps on symmetry",
    needs=["random"],
    case=suited(("dropout",)),
    seed=SEEDS,
    cost=5,
)
def dropout_is_frozen(subject: Curvature, case: NetworkCase, seed: int) -> None:
    A, V = subject.build(case), case.vectors(2, seed)
    u, v = V.mT.contiguous()
    algebra.assert_repeatable(A, u)
    algebra.assert_symmetric(A, u, v, ROUNDING * case.eps)
    algebra.assert_linear(A, u, v, 2.0, -3.0, ROUNDING * case.eps)


@check(
    "O16",
    Kind.CURVATURE,
    "built and used under no_grad or inference_mode, it is the same matrix",
    tolerance="2^14 eps of the largest entry",
    needs=["exact", "forward"],
    case=suited(),
    mode=st.sampled_from(sorted(MODES)),
    cost=5,
)
def gradient_mode_is_nothing(subject: Curvature, case: NetworkCase, mode: str) -> None:
    expected = subject.truth(case)
    with MODES[mode]():
        got = subject.dense(case)
    assert_equal(got.clone(), expected, ROUNDING * case.eps, f"under {mode}")


@check(
    "O16b",
    Kind.CURVATURE,
    "built with gradients and used under no_grad or inference_mode, it is the same matrix",
    tolerance="2^14 eps of the largest entry",
    case=suited(),
    mode=st.sampled_from(sorted(MODES)),
    cost=5,
)
def products_need_no_gradient_mode(subject: Curvature, case: NetworkCase, mode: str) -> None:
    A = subject.build(case)
    v = case.vectors(1)[:, 0]
    expected = A @ v
    with MODES[mode]():
        got, inside = A @ v, A @ v.clone()
    assert_equal(got, expected, ROUNDING * case.eps, f"under {mode}")
    assert_equal(inside.clone(), expected, ROUNDING * case.eps, f"of a vector made under {mode}")


def _state(case: NetworkCase) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in case.model.state_dict().items()}


def _flags(case: NetworkCase) -> list[bool]:
    modules = [module.training for module in case.model.modules()]
    return modules + [parameter.requires_grad for parameter in case.model.parameters()]


def _hooks(case: NetworkCase) -> int:
    return sum(
        len(hooks)
        for module in case.model.modules()
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )

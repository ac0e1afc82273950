"""Optimizers: missing gradients, and .grad after a step. P5, P10."""

from __future__ import annotations

import warnings

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from natgrad.testing.cases.training import Training
from natgrad.testing.check import Kind, check
from natgrad.testing.subjects.optimizer import Optimizer, trainings
from natgrad.testing.subjects.run import Run, far


@check(
    "P5",
    Kind.OPTIMIZER,
    "parameters that the loss does not depend on are no reason to crash, and stay",
    tolerance="none",
    training=lambda subject: trainings(subject, networks=("unused",)),
    to_none=st.booleans(),
)
def parameters_without_gradient_stay(subject: Optimizer, training: Training, to_none: bool) -> None:
    run = subject.begin(training)
    run.undecayed()
    idle = list(run.model.get_submodule("idle").parameters())
    before, start = _flat(idle), run.theta
    for _ in range(3):
        _cleared(run, to_none)
        run.step()
    assert torch.equal(_flat(idle), before), far(_flat(idle), before)
    assert not torch.equal(run.theta, start), "nothing moved"


@check(
    "P5b",
    Kind.OPTIMIZER,
    "parameters frozen after some steps stay from there on, and the others go on",
    tolerance="none",
    found=["torch.optim.LBFGS takes no gradient for zero, and moves along its memory"],
    training=trainings,
    steps=st.sampled_from([1, 0, 2, 3]),
)
def frozen_parameters_stay(subject: Optimizer, training: Training, steps: int) -> None:
    run = subject.begin(training)
    run.path(steps)
    first, *_ = run.layers()
    for parameter in first:
        parameter.requires_grad_(False)
        parameter.grad = None
    before, start = _flat(first), run.theta
    for _ in range(2):
        run.step()
    assert torch.equal(_flat(first), before), far(_flat(first), before)
    if run.status in ("", "ACCEPTED"):
        assert not torch.equal(run.theta, start), "nothing moved"


@check(
    "P5c",
    Kind.OPTIMIZER,
    "where every .grad is None nothing moves, and that is no crash",
    tolerance="none",
    training=lambda subject: trainings(subject, forms=("plain",)),
    steps=st.integers(0, 2),
)
def no_gradient_is_no_step(subject: Optimizer, training: Training, steps: int) -> None:
    run = subject.begin(training)
    run.path(steps)
    run.optimizer.zero_grad()
    before = run.theta
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning says what a status would
        run.optimizer.step()
    assert torch.equal(run.theta, before), far(run.theta, before)


@check(
    "P10",
    Kind.OPTIMIZER,
    "after a step no .grad has a graph",
    tolerance="none",
    found=["torchmin.Minimizer with Hessian products leaves the graph on .grad, and leaks it"],
    training=trainings,
)
def gradients_have_no_graph(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    for _ in range(2):
        run.step()
        for parameter in run.model.parameters():
            if parameter.grad is not None:
                assert parameter.grad.grad_fn is None, "the graph hangs on .grad"
                assert not parameter.grad.requires_grad, ".grad requires a gradient"


@check(
    "P10b",
    Kind.OPTIMIZER,
    "step() leaves .grad as backward() made it",
    tolerance="none",
    training=lambda subject: trainings(subject, forms=("plain",)),
)
def gradients_are_left_alone(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    for _ in range(2):
        run.closure()
        kept = [(p.grad, p.grad.clone()) for p in run.model.parameters() if p.grad is not None]
        run.optimizer.step()
        found = [p.grad for p in run.model.parameters() if p.grad is not None]
        assert len(found) == len(kept), "some .grad is gone"
        for grad, (tensor, values) in zip(found, kept, strict=True):
            assert grad is tensor, ".grad is another tensor"
            assert torch.equal(grad, values), ".grad has other values"


def _flat(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def _cleared(run: Run, to_none: bool) -> None:
    """Make the optimizer's zero_grad set gradients to None, or to zero."""
    original = type(run.optimizer).zero_grad

    def zero_grad() -> None:
        original(run.optimizer, to_none)

    run.optimizer.zero_grad = zero_grad

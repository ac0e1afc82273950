"""Optimizers: state, dtypes, random numbers and memory. P1, P8, P11, P12, P17."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing.cases.training import Training
from natgrad.testing.check import Kind, NotApplicable, check
from natgrad.testing.subjects.optimizer import Optimizer, trainings
from natgrad.testing.subjects.run import Run, far

STEPS = 5


@check(
    "P1",
    Kind.OPTIMIZER,
    "a state_dict through torch.save and a weights_only load continues the path bit for bit",
    tolerance="none",
    found=["torch.optim.NAdam: a factor kept in float32 is loaded in the parameters' float64"],
    needs=["deterministic"],
    training=trainings,
    steps=st.integers(1, 4),
)
def checkpoints_continue(subject: Optimizer, training: Training, steps: int) -> None:
    run, fresh = subject.begin(training), subject.begin(training)
    run.path(steps)
    fresh.model.load_state_dict(run.model.state_dict())
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)
    fresh.optimizer.load_state_dict(torch.load(file, weights_only=True))
    _assert_one_path(fresh, run)


@check(
    "P1b",
    Kind.OPTIMIZER,
    "deep copies of model and optimizer together continue the path bit for bit, on their own",
    tolerance="none",
    found=["torch.optim.LBFGS and torchmin.Minimizer: AttributeError, a copy has no _params"],
    needs=["deterministic"],
    training=trainings,
    steps=st.integers(1, 3),
)
def deep_copies_continue(subject: Optimizer, training: Training, steps: int) -> None:
    _assert_copies_continue(subject, training, steps, copy.deepcopy)


@check(
    "P1c",
    Kind.OPTIMIZER,
    "so do model and optimizer through pickle",
    tolerance="none",
    needs=["deterministic"],
    training=trainings,
    steps=st.integers(1, 3),
)
def pickles_continue(subject: Optimizer, training: Training, steps: int) -> None:
    _assert_copies_continue(subject, training, steps, lambda both: pickle.loads(pickle.dumps(both)))


@check(
    "P8",
    Kind.OPTIMIZER,
    "parameters of no dimension and some that are not contiguous are trained, and stay so",
    tolerance="none",
    found=["torch.optim.LBFGS and torchmin.Minimizer: RuntimeError, view of what has strides"],
    training=lambda subject: trainings(subject, networks=("shapes",)),
)
def odd_shapes_are_trained(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    before = [parameter.clone() for parameter in run.model.parameters()]
    strides = [(parameter.shape, parameter.stride()) for parameter in run.model.parameters()]
    run.path(2)
    for old, new in zip(before, run.model.parameters(), strict=True):
        assert not torch.equal(old, new), f"a parameter of shape {tuple(old.shape)} stayed"
    after = [(parameter.shape, parameter.stride()) for parameter in run.model.parameters()]
    assert after == strides, f"shapes and strides {strides} became {after}"


@check(
    "P8b",
    Kind.OPTIMIZER,
    "a model in float32 stays there, and its steps are those of float64 at first",
    tolerance="1% of the first step in float64: branches of a search may not turn on rounding",
    needs=["deterministic", "proportional"],
    training=lambda subject: trainings(subject, forms=("plain",), dtype=torch.float32),
)
def float32_steps_as_float64_does(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    double = subject.begin(training.in_dtype(torch.float64))
    before = double.theta
    run.step()
    double.step()
    assert run.theta.dtype == torch.float32, f"parameters became {run.theta.dtype}"
    long = float((double.theta - before).norm())
    error = float((run.theta.double() - double.theta).norm())
    assert error <= 0.01 * long + 1e-6 * float(before.norm()), f"off by {error:.2g} of {long:.2g}"


@check(
    "P8c",
    Kind.OPTIMIZER,
    "a state saved in float64 is loaded by a float32 model, and goes on there in float32",
    tolerance="none",
    training=trainings,
    steps=st.integers(1, 2),
)
def states_follow_the_parameters(subject: Optimizer, training: Training, steps: int) -> None:
    run = subject.begin(training)
    single = subject.begin(training.in_dtype(torch.float32))
    run.path(steps)
    single.model.load_state_dict(run.model.state_dict())
    single.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    single.step()
    assert single.theta.dtype == torch.float32, f"parameters became {single.theta.dtype}"
    assert bool(torch.isfinite(single.theta).all()), "parameters are not finite"


@check(
    "P11",
    Kind.OPTIMIZER,
    "no step advances the global generators of torch, NumPy or Python",
    tolerance="none",
    training=trainings,
)
def nothing_is_drawn(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    before, others = torch.get_rng_state(), (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    run.path(2)
    assert torch.equal(torch.get_rng_state(), before), "torch's generator was advanced"
    assert (random.getstate(), str(np.random.get_state())) == others, (  # noqa: NPY002
        "NumPy's or Python's generator was advanced"
    )


@check(
    "P12",
    Kind.OPTIMIZER,
    "two runs from one start are the same bit for bit",
    tolerance="none",
    needs=["deterministic"],
    training=trainings,
)
def two_runs_are_one(subject: Optimizer, training: Training) -> None:
    torch.manual_seed(1)
    run = subject.begin(training)
    expected = run.path(STEPS)
    torch.manual_seed(2)
    for found, theta in zip(subject.begin(training).path(STEPS), expected, strict=True):
        assert torch.equal(found, theta), far(found, theta)


@check(
    "P17",
    Kind.OPTIMIZER,
    "24 steps leave no more tensors than 8 do",
    tolerance="none",
    cost=25,
    training=trainings,
)
def nothing_piles_up(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)

    def after(steps: int) -> int:
        run.path(steps)
        run.optimizer.zero_grad()
        gc.collect()
        return sum(issubclass(type(found), Tensor) for found in gc.get_objects())

    with _older_objects_not_looked_at():
        few, many = after(8), after(16)
    assert many <= few, f"{many - few} tensors more after 24 steps than after 8"


@check(
    "P17b",
    Kind.OPTIMIZER,
    "a batch is freed with its step, by reference counts alone: no cycle, no memory of it",
    tolerance="none",
    found=[
        "torchmin.Minimizer keeps the last closure, and with it the batch",
        "create_graph makes cycles of parameter and graph: pytorch#4661, pytorch-minimize#29",
    ],
    training=trainings,
)
def batches_are_freed(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    run.step()
    collecting = gc.isenabled()
    gc.disable()  # memory freed from here on is freed by reference counts alone
    try:
        for _ in range(2):
            watched = _step_on_a_copy(run, training)
            assert watched() is None, "the inputs of the step before are still alive"
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _older_objects_not_looked_at() -> Iterator[None]:
    """Keep the collector from objects older than the block: they are many and slow."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _step_on_a_copy(run: Run, training: Training) -> Callable[[], Tensor | None]:
    """Step on a copy of the inputs, and return a weak reference to the copy."""
    inputs = training.batch[0].clone()

    def closure() -> Tensor:
        return run.closure_of(
            lambda: training.loss(run.model, inputs),
            lambda: training.residuals(run.model, inputs),
        )

    run.step_by(closure)
    return weakref.ref(inputs)


def _assert_one_path(run: Run, other: Run) -> None:
    for step in range(1, STEPS + 1):
        run.step()
        other.step()
        assert torch.equal(run.theta, other.theta), f"step {step}: {far(run.theta, other.theta)}"


def _assert_copies_continue(
    subject: Optimizer, training: Training, steps: int, copied: Callable[[Any], Any]
) -> None:
    run = subject.begin(training)
    run.path(steps)
    try:
        copied(run.model)
    except Exception as error:
        raise NotApplicable(f"the model alone cannot be copied: {error}") from None
    other = run.copied(copied)
    first = other.optimizer.param_groups[0]["params"][0]
    assert any(first is parameter for parameter in other.model.parameters()), (
        "the copied optimizer trains another model than the copied one"
    )
    kept = run.theta
    other.path(1)
    assert torch.equal(run.theta, kept), "a step of the copy moves the original"
    run.path(1)
    _assert_one_path(other, run)

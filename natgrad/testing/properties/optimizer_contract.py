"""Optimizers: torch.optim's contract for steps, closures, groups and hooks. P2-P4, P6."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from natgrad.testing.cases.training import Training
from natgrad.testing.check import Cases, Kind, NotApplicable, check
from natgrad.testing.subjects.optimizer import Optimizer, trainings
from natgrad.testing.subjects.run import far

BY_CLOSURE: Cases = lambda subject: trainings(  # noqa: E731
    subject, forms=("closure", "bare closure", "residuals")
)
BY_LOSS: Cases = lambda subject: trainings(subject, forms=("closure", "bare closure"))  # noqa: E731
WITHOUT: Cases = lambda subject: trainings(subject, forms=("plain",))  # noqa: E731

GAMMA = 2.0**-13  # so small that an lr which only caps the step takes effect


@check(
    "P2",
    Kind.OPTIMIZER,
    "every group has an lr, schedulers change it, and the next step is another one",
    tolerance="none",
    found=["torchmin.Minimizer has no lr: StepLR raises a KeyError"],
    needs=["deterministic"],
    training=trainings,
)
def schedules_change_the_step(subject: Optimizer, training: Training) -> None:
    run, unscheduled = subject.begin(training), subject.begin(training)
    scheduler = StepLR(run.optimizer, step_size=1, gamma=GAMMA)
    before = [float(group["lr"]) for group in run.optimizer.param_groups]
    run.step()
    scheduler.step()
    after = [float(group["lr"]) for group in run.optimizer.param_groups]
    assert after == [rate * GAMMA for rate in before], f"lr {before} became {after}"
    run.step()
    unscheduled.path(2)
    assert not torch.equal(run.theta, unscheduled.theta), (
        f"{GAMMA:g} times the lr gives the same step"
    )


@check(
    "P2b",
    Kind.OPTIMIZER,
    "at lr = 0 nothing moves",
    tolerance="none",
    found=["torch.optim.LBFGS: a ZeroDivisionError where steps went before"],
    training=trainings,
    steps=st.integers(0, 2),
)
def a_rate_of_zero_moves_nothing(subject: Optimizer, training: Training, steps: int) -> None:
    run = subject.begin(training)
    run.path(steps)
    if "lr" not in run.optimizer.param_groups[0]:
        raise NotApplicable(f"the groups of {subject.name} have no lr")
    run.set("lr", 0.0)
    before = run.theta
    run.step()
    assert torch.equal(run.theta, before), far(run.theta, before)


@check(
    "P2c",
    Kind.OPTIMIZER,
    "without a closure, half the lr is half the first step",
    tolerance="1e-9 of the step and 8 eps of the parameters, of whose difference it is made",
    needs=["proportional"],
    training=WITHOUT,
)
def half_the_rate_is_half_the_step(subject: Optimizer, training: Training) -> None:
    whole, half = subject.begin(training), subject.begin(training)
    half.set("lr", half.optimizer.param_groups[0]["lr"] / 2)
    before = whole.theta
    whole.step()
    half.step()
    long, short = whole.theta - before, half.theta - before
    allowed = 1e-9 * float(long.norm()) + 8 * torch.finfo(before.dtype).eps * float(before.norm())
    error = float((short - long / 2).norm())
    assert error <= allowed, f"off by {error:.2g} of {float(long.norm()):.2g}"


@check(
    "P3",
    Kind.OPTIMIZER,
    "each group has its own lr: one at 0 stays, the others move",
    tolerance="none",
    needs=["groups"],
    training=trainings,
)
def groups_have_their_own_rate(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    first, *others = run.layers()
    lr = run.optimizer.param_groups[0]["lr"]
    rest = [each for layer in others for each in layer]
    run.regroup([first, rest], lr=[0.0, lr])
    before = [_flat(first), _flat(rest)]
    run.step()
    assert torch.equal(_flat(first), before[0]), f"at lr = 0, {far(_flat(first), before[0])}"
    if run.status in ("", "ACCEPTED"):  # part of a descent direction may be none
        assert not torch.equal(_flat(rest), before[1]), "the group with a rate stayed"


@check(
    "P3b",
    Kind.OPTIMIZER,
    "a group added after steps is trained like the others",
    tolerance="none",
    needs=["groups"],
    training=trainings,
    steps=st.integers(0, 3),
)
def groups_may_come_later(subject: Optimizer, training: Training, steps: int) -> None:
    run = subject.begin(training)
    first, *others = run.layers()
    run.regroup([[each for layer in others for each in layer]])
    for parameter in first:
        parameter.requires_grad_(False)
    run.path(steps)
    before = _flat(first)
    for parameter in first:
        parameter.requires_grad_(True)
    run.optimizer.add_param_group({"params": first})
    run.step()
    if run.status in ("", "ACCEPTED"):
        assert not torch.equal(_flat(first), before), "the new group stayed"
    run.optimizer.load_state_dict(run.optimizer.state_dict())


@check(
    "P3c",
    Kind.OPTIMIZER,
    "weight decay pulls its group towards zero, ⟨θ_w − θ_0, θ⟩ < 0, and no other group",
    tolerance="1e-9 of the step of the other group",
    needs=["groups", "weight decay"],
    training=trainings,
)
def weight_decay_is_that_of_its_group(subject: Optimizer, training: Training) -> None:
    ends = []
    for decay in (0.0, 1.0):
        run = subject.begin(training)
        first, *others = run.layers()
        rest = [each for layer in others for each in layer]
        run.regroup([first, rest], weight_decay=[decay, 0.0])
        start, start_of_rest = _flat(first), _flat(rest)
        run.step()
        ends.append((_flat(first), _flat(rest)))
    (free, other), (pulled, beside) = ends
    pull = float((pulled - free) @ start)
    assert pull < 0, f"⟨θ_w − θ_0, θ⟩ = {pull:.3g}"
    moved = float((beside - other).norm()) / max(float((other - start_of_rest).norm()), 1e-300)
    assert moved <= 1e-9, f"a group without decay is moved by {moved:.2g} of its step"


@check(
    "P4",
    Kind.OPTIMIZER,
    "the standard closure (zero_grad, loss, backward, return loss) is taken, and step returns its "
    "first loss",
    tolerance="none",
    found=["torchmin.Minimizer calls backward itself: a RuntimeError, backward a second time"],
    training=BY_LOSS,
)
def step_returns_the_first_loss(subject: Optimizer, training: Training) -> None:
    run, losses = subject.begin(training), []

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss = training.loss(run.model)
        losses.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    returned = run.optimizer.step(closure)
    assert losses, "the closure is never called"
    assert returned is not None, "step(closure) returns nothing"
    value = float(torch.as_tensor(returned).detach())
    assert value == losses[0], f"returns {value}, the first was {losses[0]}"


@check(
    "P4b",
    Kind.OPTIMIZER,
    "closures run with gradients enabled, and the caller's grad mode is what it was",
    tolerance="none",
    training=BY_CLOSURE,
    enabled=st.booleans(),
)
def closures_run_with_gradients(subject: Optimizer, training: Training, enabled: bool) -> None:
    run, seen = subject.begin(training), []

    def closure() -> Tensor:
        seen.append(torch.is_grad_enabled())
        return run.closure()

    before = torch.is_grad_enabled()
    with torch.set_grad_enabled(enabled):
        run.optimizer.step(closure)
        assert torch.is_grad_enabled() is enabled, "step leaves another grad mode"
    assert torch.is_grad_enabled() is before
    assert all(seen), "a closure was called without gradients"


@check(
    "P4c",
    Kind.OPTIMIZER,
    "as many evaluations as it says in last_step",
    tolerance="none",
    needs=["status"],
    training=BY_CLOSURE,
)
def evaluations_are_counted(subject: Optimizer, training: Training) -> None:
    run, calls = subject.begin(training), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return run.closure()

    run.optimizer.step(closure)
    told = getattr(run.optimizer.last_step, "evaluations", None)
    if told is None:
        raise NotApplicable(f"{subject.name} does not tell its evaluations")
    assert told == calls, f"says {told}, the closure was called {calls} times"


@check(
    "P4d",
    Kind.OPTIMIZER,
    "step() without a closure moves the parameters and returns None",
    tolerance="none",
    training=WITHOUT,
)
def a_bare_step_moves(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    before = run.theta
    assert run.step() is None, "step() returns something"
    assert not torch.equal(run.theta, before), "nothing moved"


@check(
    "P6",
    Kind.OPTIMIZER,
    "hooks of step, state_dict and load_state_dict are called once each, in order",
    tolerance="none",
    training=trainings,
)
def hooks_fire(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    optimizer, fired = run.optimizer, []
    optimizer.register_step_pre_hook(lambda *_: fired.append("before"))
    optimizer.register_step_post_hook(lambda *_: fired.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: fired.append("saving"))
    optimizer.register_state_dict_post_hook(lambda *_: fired.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: fired.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: fired.append("loaded"))
    run.step()
    optimizer.load_state_dict(optimizer.state_dict())
    expected = ["before", "after", "saving", "saved", "loading", "loaded"]
    assert fired == expected, f"{fired}, expected {expected}"


def _flat(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])

"""What is NaN or infinite ends a step, is named, and leaves nothing behind."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad.curvature import LinearOperator
from natgrad.optim import (
    KFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonFiniteError,
    TrustRegionNewton,
)

DOUBLE = torch.float64
EVALUATIONS = 50  # the most that any step may take

each_bad = pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)


def bad_loss(training, bad: float) -> Tensor:
    returned = training.closure()
    return returned + bad


def bad_gradient(training, bad: float) -> Tensor:
    """At a finite loss."""
    parameter = next(training.model.parameters())
    if training.kind.residuals:
        # Zero, and the slope of a square root there.
        nothing = (parameter - parameter.detach()).flatten()[0]
        return training.closure() + nothing.sqrt()
    loss = training.closure()
    parameter.grad.flatten()[1] = bad
    return loss


CAUSES = {"NONFINITE_LOSS": bad_loss, "NONFINITE_GRADIENT": bad_gradient}


def snapshot(training) -> tuple[Tensor, dict[str, Any]]:
    """The parameters, and all that the optimizer knows but its count of bad steps. What is zero or
    None is known of nothing: the place for something to remember."""
    state = copy.deepcopy(training.optimizer.state_dict())
    for index, known in state["state"].items():
        known.pop("nonfinite_steps", None)
        state["state"][index] = {
            name: value
            for name, value in known.items()
            if value is not None and bool(torch.as_tensor(value).any())
        }
    return training.theta, state


def assert_unchanged(
    before: tuple[Tensor, dict[str, Any]], after: tuple[Tensor, dict[str, Any]]
) -> None:
    assert torch.equal(before[0], after[0])
    one, other = before[1], after[1]
    assert one["param_groups"] == other["param_groups"]
    assert {k for k, v in one["state"].items() if v} == {k for k, v in other["state"].items() if v}
    for index, known in one["state"].items():
        assert known.keys() == other["state"][index].keys()
        for key, value in known.items():
            torch.testing.assert_close(other["state"][index][key], value, rtol=0, atol=0)


@each_bad
@pytest.mark.parametrize("cause", CAUSES)
def test_a_step_that_starts_badly_changes_nothing(cause, bad, name, train):
    training, undisturbed = train(name), train(name)
    for _ in range(2):
        training.step()
        undisturbed.step()
    before = snapshot(training)
    training.optimizer.step(lambda: CAUSES[cause](training, bad))
    assert training.status == cause
    assert training.optimizer.last_step.evaluations == 1
    assert training.optimizer.last_step.step_scale == 0
    assert_unchanged(before, snapshot(training))
    training.step()  # what comes after is as if it had not been
    undisturbed.step()
    assert torch.equal(training.theta, undisturbed.theta)


@each_bad
def test_a_bad_gradient_without_a_closure_changes_nothing(bad, plain, train):
    training = train(plain)
    training.plain_step()
    before = snapshot(training)
    bad_gradient(training, bad)
    training.optimizer.step()
    assert training.status == "NONFINITE_GRADIENT"
    assert_unchanged(before, snapshot(training))


# --- curvature


class Sour(nn.Module):
    """A network whose outputs are NaN after so many calls, until it is sweetened. Curvature calls
    it after the closure has."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.left = network, math.inf

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        outputs = self.network(x)
        return outputs if self.left >= 0 else outputs * math.nan

    def sour(self, after: int) -> None:
        self.left = after

    def sweeten(self) -> None:
        self.left = math.inf


def network(built, generator) -> tuple[Sour, Tensor]:
    inner = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    return Sour(inner), torch.randn(7, 3, generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize("closure", [False, True], ids=["backward", "closure"])
@pytest.mark.parametrize("steps", [0, 3])  # K-FAC refreshes before the first and the fourth
def test_bad_curvature_of_a_model_changes_nothing(
    steps, closure, watching, train, built, generator
):
    training = train(watching, network(built, generator))
    undisturbed = train(watching, copy.deepcopy((training.model, training.inputs)))

    def step(training):
        return training.step() if closure else training.plain_step()

    for _ in range(steps):
        step(training)
        step(undisturbed)
    before = snapshot(training)
    training.model.sour(after=1)
    step(training)
    assert training.status == "NONFINITE_CURVATURE"
    assert training.optimizer.last_step.evaluations <= 1
    assert_unchanged(before, snapshot(training))
    training.model.sweeten()
    for _ in range(2):
        step(training)
        step(undisturbed)
        assert torch.equal(training.theta, undisturbed.theta)


def quadratic(x: Tensor) -> Tensor:
    return ((x - 1) * torch.tensor([1.0, 2.0], dtype=DOUBLE)).square().sum() / 2


def with_bad_curvature(x: Tensor, bad: float) -> Tensor:
    """A finite function with a finite gradient."""
    if math.isnan(bad):  # inf · 0 in its second derivative
        return quadratic(x) + 0 * ((x - x.detach()).abs() ** 1.5).sum()
    return quadratic(x) + ((x - x.detach()).abs() ** 1.5).sum()


def matrix(bad: float) -> LinearOperator:
    return LinearOperator.from_dense(torch.diag(torch.tensor([1.0, bad], dtype=DOUBLE)))


OF_PARAMETERS = {
    "NaturalGradient": lambda x, bad: NaturalGradient([x], curvature=lambda: matrix(bad)),
    "HessianFree": lambda x, bad: HessianFree([x], curvature=lambda: matrix(bad)),
    "LevenbergMarquardt": lambda x, bad: LevenbergMarquardt(
        [x], jacobian=lambda: matrix(bad).to_dense()
    ),
    "TrustRegionNewton": lambda x, bad: TrustRegionNewton([x]),
}


@each_bad
@pytest.mark.parametrize("make", OF_PARAMETERS.values(), ids=OF_PARAMETERS)
def test_bad_curvature_of_parameters_changes_nothing(make, bad):
    x = torch.tensor([3.0, -2.0], dtype=DOUBLE, requires_grad=True)
    optimizer, evaluations = make(x, bad), []

    def closure():
        evaluations.append(x.detach().clone())
        if isinstance(optimizer, LevenbergMarquardt):
            return x - 1
        optimizer.zero_grad()
        loss = with_bad_curvature(x, bad)
        loss.backward()
        return loss

    before, settings = x.detach().clone(), copy.deepcopy(optimizer.state_dict()["param_groups"])
    optimizer.step(closure)
    assert optimizer.last_step.status.name == "NONFINITE_CURVATURE"
    assert len(evaluations) == 1
    assert torch.equal(x, before)
    after = optimizer.state_dict()["param_groups"]
    for group in (*settings, *after):  # a gradient was seen, and it was finite
        group.pop("largest_gradient", None)
    assert after == settings


# --- candidates


def test_candidates_that_are_all_bad_are_refused(searching, train, built, generator):
    training = train(searching, network(built, generator))
    evaluated: list[Any] = []

    def closure():
        loss = training.closure()
        evaluated.append(None)
        return loss * math.nan if len(evaluated) > 1 else loss

    before = training.theta
    for _ in range(2):
        evaluated.clear()
        training.optimizer.step(closure)
        assert training.status == "NONFINITE_LOSS"
        assert 1 < len(evaluated) <= EVALUATIONS
        assert torch.equal(training.theta, before)
    first = float(training.loss().detach())
    for _ in range(5):
        training.step()
    assert float(training.loss().detach()) < first


def test_a_bad_candidate_is_only_too_far(retrying, train):
    """A loss that is NaN beyond some distance from the start."""
    training = train(retrying)
    start = training.theta
    lost: list[Any] = []

    def closure():
        loss = training.closure()
        if float((training.theta - start).norm()) > 0.02:
            lost.append(None)
            return loss * math.nan
        return loss

    before = float(training.loss().detach())
    for _ in range(2):
        training.optimizer.step(closure)
        if training.status == "ACCEPTED":
            break
    assert lost or retrying == "NonlinearCG"
    assert training.status == "ACCEPTED"
    assert float(training.loss().detach()) < before
    assert float((training.theta - start).norm()) <= 0.02


class Interrupted(Exception):
    pass


def check_exception(training, error: type[BaseException], nth: int) -> None:
    """That of the ``nth`` call of the closure leaves no trace."""
    first_gradients = []
    training.step()
    before = training.theta
    calls: list[Any] = []

    def gradients() -> list[Tensor]:
        return [p.grad.clone() for p in training.model.parameters() if p.grad is not None]

    def closure():
        calls.append(None)
        if len(calls) >= nth:
            raise error
        loss = training.closure()
        if len(calls) == 1:
            first_gradients.extend(gradients())
        return loss if len(calls) == 1 else loss * 1e3  # the first candidate is not good enough

    with pytest.raises(error):
        training.optimizer.step(closure)
    assert torch.equal(training.theta, before)
    pairs = zip(gradients(), first_gradients, strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_an_exception_at_the_first_candidate_leaves_no_trace(error, searching, train):
    check_exception(train(searching), error, nth=2)


def test_an_exception_at_a_later_candidate_leaves_no_trace(retrying, train):
    check_exception(train(retrying), Interrupted, nth=3)


# --- three in a row


@pytest.mark.parametrize("cause", CAUSES)
def test_three_bad_steps_in_a_row_are_an_error_that_names_the_cause(cause, name, train):
    training = train(name)
    training.step()
    before = training.theta

    def bad_step():
        training.optimizer.step(lambda: CAUSES[cause](training, math.nan))

    for _ in range(2):
        bad_step()
        bad_step()
        training.step()  # resets the count
        before = training.theta
    bad_step()
    bad_step()
    with pytest.raises(NonFiniteError, match=rf"3 steps in a row .* {cause}"):
        bad_step()
    assert torch.equal(training.theta, before)
    assert training.status == cause
    training.step()
    assert not training.optimizer.last_step.status.nonfinite


def test_bad_steps_are_counted_across_a_checkpoint(name, train):
    training, other = train(name), train(name)
    for _ in range(2):
        training.optimizer.step(lambda: bad_loss(training, math.nan))
    other.optimizer.load_state_dict(training.optimizer.state_dict())
    with pytest.raises(NonFiniteError):
        other.optimizer.step(lambda: bad_loss(other, math.nan))


# --- K-FAC's memory


class Scaled(nn.Module):
    """A parameter outside of K-FAC's layers, of which only the curvature can go bad."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
        self.calls, self.since = 0, math.inf

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scale: Tensor = self.scale
        if self.calls > self.since:
            scale = scale + (scale - scale.detach()).abs().sqrt()
        return self.layer(x) * scale


@pytest.mark.parametrize("steps", [0, 3])
def test_a_bad_block_outside_the_layers_does_not_stay_in_kfac(steps, built, generator):
    model, x = built(Scaled), torch.randn(7, 3, generator=generator, dtype=DOUBLE)
    optimizer = KFAC(model, likelihood="categorical", refresh_every=3)
    targets = torch.randint(0, 3, (7,), generator=generator)

    def step() -> str:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), targets).backward()
        optimizer.step()
        assert optimizer.last_step is not None
        return optimizer.last_step.status.name

    for _ in range(steps):
        assert step() == "ACCEPTED"
    model.calls, model.since = 0, 1
    assert step() == "NONFINITE_CURVATURE"
    model.since = math.inf
    assert step() == "ACCEPTED"
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

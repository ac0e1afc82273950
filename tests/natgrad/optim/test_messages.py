"""What is wrong is said at the door, by its name and with the cure; what can be done is done."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    OptimizerStatus,
    TrustRegionNewton,
)

DOUBLE = torch.float64


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(4, 3), kind

    def forward(self, x):
        y = self.linear(x)
        return {"dict": {"scores": y, "x": x}, "tuple": (y, x), "logits": {"x": x, "logits": y}}[
            self.kind
        ]


PART = {"dict": "outputs['scores']", "tuple": "outputs[0]", "logits": "outputs['logits']"}


@pytest.fixture
def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(4, 3)


@pytest.mark.parametrize("kind", PART)
@pytest.mark.parametrize(
    ("make", "example"),
    [
        (lambda m: NaturalGradient(m, likelihood="categorical"), "Categorical(logits={})"),
        (lambda m: NaturalGradient(m, likelihood="bernoulli"), "Bernoulli(logits={})"),
        (lambda m: KFAC(m, likelihood="normal"), "Normal({}, 1.0)"),
        (lambda m: HessianFree(m, loss="cross_entropy"), "metrics.cross_entropy({})"),
    ],
)
def test_outputs_of_several_parts_need_a_function_that_is_written_out(make, example, kind):
    with torch.random.fork_rng():
        model = Several(kind)
    optimizer = make(model)
    outputs = model(torch.ones(5, 4))
    y = outputs[0] if kind == "tuple" else outputs[{"dict": "scores"}.get(kind, kind)]
    y.square().mean().backward()
    with pytest.raises(TypeError) as error:
        optimizer.step()
    assert example.format(PART[kind]) in str(error.value)


@pytest.mark.parametrize("make", [NaturalGradient, HessianFree, KFAC, AdaptiveKFAC])
def test_rates_are_one_number(make, linear):
    with pytest.raises(ValueError, match=r"lr must be a number or a tensor of one element.*\(2,\)"):
        make(linear, lr=torch.tensor([1e-3, 1e-3]))
    with pytest.raises(ValueError, match="lr must be a number, got the text"):
        make(linear, lr="0.1")
    assert make(linear, lr=torch.tensor([1e-3])).param_groups[0]["lr"] == torch.tensor([1e-3])


@pytest.mark.parametrize("make", [KFAC, AdaptiveKFAC])
@pytest.mark.parametrize("samples", [0, -1, 1.5])
def test_numbers_of_labels_are_refused_at_the_door(make, samples, linear):
    with pytest.raises(ValueError, match=r"samples.* must be at least 1, or None"):
        make(linear, likelihood="categorical", samples=samples)


@pytest.mark.parametrize("make", [NonlinearCG, TrustRegionNewton, LevenbergMarquardt])
def test_complex_parameters_take_the_steps_of_their_parts(make):
    starts = torch.ones(3, dtype=torch.complex128), torch.ones(3, 2, dtype=DOUBLE)
    starts[1][:, 1] = 0
    ends = []
    for start in starts:
        parameter = nn.Parameter(start)
        optimizer = make([parameter])

        def closure(parameter=parameter, optimizer=optimizer):
            optimizer.zero_grad()
            z = parameter if parameter.is_complex() else torch.view_as_complex(parameter)
            z = z - (1 + 2j) + 0.1 * z**2
            if make is LevenbergMarquardt:
                return z
            loss = z.abs().square().sum()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        end = parameter.detach()
        ends.append(torch.view_as_real(end) if end.is_complex() else end)
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("method", ["dense", "sample_space", "cg"])
def test_complex_residuals_are_their_real_and_imaginary_parts(method, generator):
    t = torch.linspace(0, 3, 20, dtype=DOUBLE)
    truth = torch.exp((2j - 1) * t)
    paths = []
    for real in (False, True):
        x = torch.tensor([1.5, 0.5], dtype=DOUBLE, requires_grad=True)
        optimizer = LevenbergMarquardt([x], solver=method)

        def closure(x=x, real=real):
            r = torch.exp((x[0] * 1j - x[1]) * t) - truth
            return torch.view_as_real(r).reshape(-1) if real else r

        losses = [float(optimizer.step(closure)) for _ in range(12)]
        paths.append(losses)
        torch.testing.assert_close(x.detach(), torch.tensor([2.0, 1.0], dtype=DOUBLE))
    assert paths[0] == pytest.approx(paths[1], rel=1e-6, abs=1e-20)


def test_no_residuals_are_no_success():
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"no residuals.*\(0,\)"):
        LevenbergMarquardt([x]).step(lambda: x[:0])


def likelihood_of_a_process(make, safe):
    """Minus the log marginal likelihood of a Gaussian process on points without noise: along the
    way its matrix ceases to be positive definite to rounding. The losses of 40 steps."""
    t = torch.linspace(0, 1, 30, dtype=DOUBLE)
    y = torch.sin(6 * t)
    p = torch.tensor([0.0, 0.0, -2.0], dtype=DOUBLE, requires_grad=True)
    optimizer, failed = make([p]), 0

    def closure():
        nonlocal failed
        optimizer.zero_grad()
        length, size, noise = p.exp()
        K = size * torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2)
        try:
            L = torch.linalg.cholesky(K + noise * torch.eye(30, dtype=DOUBLE))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            failed += 1
            if safe:
                return torch.tensor(math.nan)
            raise
        loss = 0.5 * (y @ torch.cholesky_solve(y[:, None], L)[:, 0]) + L.diagonal().log().sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(40)]
    assert failed
    return losses


@pytest.mark.parametrize("make", [TrustRegionNewton, NonlinearCG])
def test_a_closure_that_cannot_factor_a_matrix_at_a_candidate_shortens_the_step(make):
    raising, telling = (likelihood_of_a_process(make, safe) for safe in (False, True))
    assert raising == telling
    assert raising[-1] < -300


def test_other_exceptions_come_out_and_leave_the_parameters():
    x = torch.tensor([3.0, 4.0], dtype=DOUBLE, requires_grad=True)
    optimizer = TrustRegionNewton([x])
    calls = []

    def closure():
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("mine")
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    with pytest.raises(KeyError, match="mine"):
        optimizer.step(closure)
    assert torch.equal(x, torch.tensor([3.0, 4.0], dtype=DOUBLE))


@pytest.mark.parametrize(("reduction", "warns"), [("mean", False), ("sum", True)])
def test_steps_that_nothing_measures_and_that_diverge_are_warned_about_once(
    reduction, warns, generator
):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(5, 10)
    x, t = torch.randn(1, 5, generator=generator), torch.zeros(1, 10)
    optimizer = HessianFree(model, loss="squared_error")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            optimizer.zero_grad()
            F.mse_loss(model(x), t, reduction=reduction).backward()
            optimizer.step()
            assert optimizer.last_step is not None
            assert optimizer.last_step.status in (
                OptimizerStatus.ACCEPTED,
                OptimizerStatus.CONVERGED,
            )
    told = [str(each.message) for each in caught if "reduction=" in str(each.message)]
    assert len(told) == warns
    assert not warns or 'Use reduction="mean"' in told[0]

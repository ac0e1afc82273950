"""What torch.optim promises of every optimizer, kept by ours."""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from natgrad.curvature import GaussNewton
from natgrad.curvature.metrics import cross_entropy
from natgrad.flat import flatten
from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)

DOUBLE = torch.float64
RATES = (0.5, 0.125)


def layers(model: nn.Module) -> list[dict[str, Any]]:
    """A parameter group for each layer."""
    return [{"params": list(layer.parameters())} for layer in model.children()]


def rated(model: nn.Module) -> list[dict[str, Any]]:
    """The same with a learning rate each, those of RATES."""
    return [{**group, "lr": lr} for group, lr in zip(layers(model), RATES, strict=True)]


def path(training, steps: int = 5) -> list[Tensor]:
    found = []
    for _ in range(steps):
        training.step()
        found.append(training.theta)
    return found


def assert_same_path(one, other, steps: int = 5, **tolerance) -> None:
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}
    for mine, theirs in zip(path(one, steps), path(other, steps), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


# --- closures


def test_closures_run_with_gradients_whatever_the_caller_has(name, train):
    training, enabled = train(name), []

    def closure():
        enabled.append(torch.is_grad_enabled())
        return training.closure()

    with torch.no_grad():
        training.optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert all(enabled)
    assert training.optimizer.last_step.evaluations == len(enabled)


def test_step_returns_the_first_loss(standard, train):
    training, losses = train(standard), []

    def closure():
        losses.append(training.closure())
        return losses[-1]

    assert torch.equal(training.optimizer.step(closure), losses[0])


def test_step_returns_half_the_sum_of_squared_residuals(train):
    training = train("LevenbergMarquardt of residuals")
    expected = training.closure().detach().square().sum() / 2
    torch.testing.assert_close(training.step(), expected)


def test_step_without_a_closure_moves_the_parameters_and_returns_nothing(plain, train):
    training = train(plain)
    before = training.theta
    training.closure()
    assert training.optimizer.step() is None
    assert training.status == "ACCEPTED"
    assert not torch.equal(training.theta, before)


@pytest.mark.parametrize("name", ["TrustRegionNewton", "NonlinearCG"])
@pytest.mark.parametrize("closure", [False, True], ids=["no closure", "a closure without a loss"])
def test_what_needs_a_closure_says_so(name, closure, train):
    training = train(name)
    before = training.theta
    training.closure()
    with pytest.raises(TypeError, match=r"needs step\(closure\)"):
        training.optimizer.step((lambda: training.closure() and None) if closure else None)
    assert torch.equal(training.theta, before)


def test_residuals_are_asked_for_where_neither_they_nor_the_model_are_known(train):
    training = train("LevenbergMarquardt of residuals")
    training.loss().backward()
    with pytest.raises(RuntimeError, match="needs residuals"):
        training.optimizer.step()


def test_a_loss_that_is_no_scalar_is_refused(standard, train):
    training = train(standard)
    before = training.theta
    with pytest.raises((TypeError, ValueError), match=r"scalar loss|residuals"):
        training.optimizer.step(lambda: training.closure().detach().expand(2))
    assert torch.equal(training.theta, before)


# --- learning rates and their schedules

# Without what else bounds a step it is lr times the solver's direction.
UNBOUNDED: dict[str, dict[str, Any]] = {
    "NaturalGradient": {"max_kl": 1e6},
    "HessianFree": {},
    "LevenbergMarquardt": {"radius": math.inf, "damping": 1e-3},
    "KFAC": {"max_kl": None, "momentum": 0.0},
    "KFAC corrected": {"max_kl": None, "momentum": 0.0},
    "AdaptiveKFAC": {},
}


def moved(training) -> list[Tensor]:
    """What a step without a closure adds to each layer."""
    before = [flatten(layer.parameters()) for layer in training.model.children()]
    training.plain_step()
    after = [flatten(layer.parameters()) for layer in training.model.children()]
    return [new - old for new, old in zip(after, before, strict=True)]


@pytest.mark.parametrize("name", UNBOUNDED)
def test_every_group_has_its_own_learning_rate(name, train):
    steps = moved(train(name, groups=rated, **UNBOUNDED[name]))
    directions = moved(train(name, lr=1.0, **UNBOUNDED[name]))
    for step, rate, direction in zip(steps, RATES, directions, strict=True):
        torch.testing.assert_close(step, rate * direction, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["HessianFree", "TrustRegionNewton"])
def test_with_unequal_rates_the_model_is_still_that_of_the_step_taken(name, train):
    """Also after refused candidates, which the radius makes sure of."""
    radius = {"radius": 1e3} if name == "TrustRegionNewton" else {}
    training = train(name, groups=rated, **radius)
    parameters = list(training.model.parameters())
    loss = training.loss()
    g = flatten(torch.autograd.grad(loss, parameters, create_graph=True))
    if name == "HessianFree":
        outputs = training.model(training.inputs)
        A = GaussNewton(outputs, parameters, cross_entropy).to_dense()
    else:

        def loss_at(theta: Tensor) -> Tensor:
            named = unflattened(training.model, theta)
            outputs = torch.func.functional_call(training.model, named, (training.inputs,))
            return F.cross_entropy(outputs, training.targets)

        A = torch.autograd.functional.hessian(loss_at, flatten(parameters))
    before = training.theta
    training.step()
    report = training.optimizer.last_step
    d = training.theta - before
    assert training.status == "ACCEPTED"
    assert report.evaluations > 2
    predicted = -float(g @ d + d @ A @ d / 2)
    assert report.predicted_reduction == pytest.approx(predicted, rel=1e-9)


def unflattened(model: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    pieces = torch.split(theta, [p.numel() for p in model.parameters()])
    named = dict(model.named_parameters())
    return {
        name: piece.view_as(parameter)
        for (name, parameter), piece in zip(named.items(), pieces, strict=True)
    }


def test_a_line_search_of_one_direction_has_one_rate(train):
    with pytest.raises(ValueError, match="lr belongs to the whole step"):
        train("NonlinearCG", groups=rated)


SCHEDULES: dict[str, Any] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_schedule_scales_the_steps(name, schedule, train):
    training = train(name, **UNBOUNDED[name])
    scheduler = SCHEDULES[schedule](training.optimizer)
    training.plain_step()
    unscheduled = training.copied(copy.deepcopy)
    for _ in range(2 if schedule == "ReduceLROnPlateau" else 1):
        scheduler.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
    for half, whole in zip(moved(training), moved(unscheduled), strict=True):
        torch.testing.assert_close(half, whole / 2, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_goes_with_closures(schedule, name, train):
    training = train(name)
    scheduler = SCHEDULES[schedule](training.optimizer)
    rate = training.optimizer.param_groups[0]["lr"]
    for _ in range(3):
        before = float(training.loss().detach())
        training.step()
        assert training.status == "ACCEPTED"
        assert float(training.loss().detach()) < before
        scheduler.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
    assert training.optimizer.param_groups[0]["lr"] < rate


def test_one_cycle_turns_rate_and_momentum_of_kfac(train):
    training = train("KFAC")
    scheduler = lr_scheduler.OneCycleLR(training.optimizer, max_lr=0.5, total_steps=10)
    found = []
    for _ in range(5):
        (group,) = training.optimizer.param_groups
        found.append((group["lr"], group["momentum"]))
        training.plain_step()
        scheduler.step()
    rates, momenta = zip(*found, strict=True)
    assert max(rates) == 0.5
    assert (min(momenta), max(momenta)) == (0.85, 0.95)
    assert training.status == "ACCEPTED"


def test_a_rate_may_be_a_tensor(name, train):
    one, other = train(name, lr=torch.tensor(0.5)), train(name, lr=0.5)
    assert_same_path(one, other, steps=2)


def test_a_rate_of_zero_moves_nothing_and_teaches_nothing(standard, train):
    training = train(standard)
    training.step()
    training.optimizer.param_groups[0]["lr"] = 0.0
    before, settings = training.theta, numbers(training.optimizer)
    training.step()
    assert torch.equal(training.theta, before)
    assert numbers(training.optimizer) == settings


# --- parameter groups


def numbers(optimizer) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def growing(built, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """A network whose first layer is frozen, for now."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    model[0].requires_grad_(False)
    return model, torch.randn(7, 3, generator=generator, dtype=DOUBLE)


def test_a_group_may_come_later(name, train, built, generator):
    training = train(name, growing(built, generator), groups=lambda model: model[2].parameters())
    for _ in range(4):  # what adapts has adapted
        training.step()
    training.model[0].requires_grad_(True)
    training.optimizer.add_param_group({"params": list(training.model[0].parameters())})
    before, loss = flatten(training.model[0].parameters()), float(training.loss().detach())
    for _ in range(3):
        training.step()
    assert bool((flatten(training.model[0].parameters()) != before).all())
    assert float(training.loss().detach()) < loss


def test_a_group_that_disagrees_on_the_whole_step_is_refused_without_a_trace(
    name, train, built, generator
):
    training = train(name, growing(built, generator), groups=lambda model: model[2].parameters())
    training.step()
    untouched = training.copied(copy.deepcopy)
    body = training.model[0]
    for setting in training.optimizer.whole:
        value = training.optimizer.param_groups[0][setting]
        other = not value if isinstance(value, bool) else 123.0
        with pytest.raises(ValueError, match=f"{setting} belongs to the whole step"):
            training.optimizer.add_param_group({"params": list(body.parameters()), setting: other})
    with pytest.raises(ValueError, match="lr must be at least 0"):
        training.optimizer.add_param_group({"params": list(body.parameters()), "lr": -1.0})
    assert numbers(training.optimizer) == numbers(untouched.optimizer)
    assert_same_path(training, untouched, steps=3)


def test_names_of_parameters_are_kept(name, train):
    training = train(name, groups=lambda model: model.named_parameters())
    training.step()
    known = [name for name, _ in training.model.named_parameters()]
    assert training.optimizer.state_dict()["param_groups"][0]["param_names"] == known


def test_order_and_groups_of_the_parameters_do_not_matter(name, train):
    # A solve that is cut short carries rounding into the next steps; so do HessianFree's choices
    # among iterates of nearly one loss.
    settings = {"rtol": 1e-12} if name == "NaturalGradient" else {}
    one = train(name, **settings)
    other = train(name, groups=lambda model: layers(model)[::-1], **settings)
    assert_same_path(one, other, steps=3, rtol=1e-6, atol=1e-9)


# --- checkpoints

SAVED = [
    ("NaturalGradient", {}),
    ("HessianFree", {}),
    ("LevenbergMarquardt", {}),
    ("LevenbergMarquardt of residuals", {"momentum": 0.5, "damping": 1e-3}),
    ("TrustRegionNewton", {}),
    ("NonlinearCG", {}),
    ("KFAC", {"weight_decay": 1e-2}),
    ("KFAC", {"samples": None}),
    ("KFAC corrected", {}),
    ("AdaptiveKFAC", {"fraction": 0.5}),
]
saved = pytest.mark.parametrize(
    ("name", "settings"), SAVED, ids=[f"{name} {settings or ''}" for name, settings in SAVED]
)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def with_a_norm(built, generator, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Parameters in and outside of what K-FAC knows as layers."""
    model = built(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)), seed
    )
    return model, torch.randn(7, 3, generator=generator, dtype=DOUBLE)


@saved
def test_a_checkpoint_continues_bit_for_bit(name, settings, train, built, generator):
    model, inputs = with_a_norm(built, generator)
    training = train(name, (model, inputs), **settings)
    fresh = train(name, (with_a_norm(built, generator, seed=1)[0], inputs), **settings)
    for _ in range(5):  # K-FAC refreshes before the first and the fourth
        training.step()
    fresh.model.load_state_dict(training.model.state_dict())
    fresh.optimizer.load_state_dict(through_a_file(training.optimizer.state_dict()))
    assert_same_path(training, fresh)
    assert numbers(training.optimizer) == numbers(fresh.optimizer)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))],
    ids=["deepcopy", "pickle"],
)
@saved
def test_copies_of_model_and_optimizer_continue_bit_for_bit(
    name, settings, copied, train, built, generator
):
    training = train(name, with_a_norm(built, generator), **settings)
    for _ in range(2):
        training.step()
    other = training.copied(copied)
    assert other.optimizer.param_groups[0]["params"][0] is next(other.model.parameters())
    assert_same_path(training, other, steps=3)
    assert numbers(training.optimizer) == numbers(other.optimizer)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "average": AveragedModel,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_the_model_alone_is_not_watched(copied, watching, train):
    """Of a network's target, or of weights averaged over time, nobody asks the curvature."""
    training, alone = train(watching), train(watching)
    other = copied(training.model)
    for step in (training, alone):
        step.closure()
    other(training.inputs[:3]).square().sum().backward()
    if copied is copy.copy:  # which shares the parameters, and with them .grad
        training.closure()
    training.optimizer.step()
    alone.optimizer.step()
    assert torch.equal(training.theta, alone.theta)


# --- hooks


def test_hooks_fire(name, train):
    training, fired = train(name), []
    optimizer = training.optimizer
    optimizer.register_step_pre_hook(lambda *_: fired.append("before"))
    optimizer.register_step_post_hook(lambda *_: fired.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: fired.append("saving"))
    optimizer.register_state_dict_post_hook(lambda *_: fired.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: fired.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: fired.append("loaded"))

    def closure():
        if fired[-1] != "closure":
            fired.append("closure")
        return training.closure()

    optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    assert fired == ["before", "closure", "after", "saving", "saved", "loading", "loaded"]


# --- what is maximised, frozen, left alone


@pytest.mark.parametrize(
    "name",
    [
        *("NaturalGradient", "HessianFree", "TrustRegionNewton", "NonlinearCG"),
        *("KFAC", "KFAC corrected", "AdaptiveKFAC"),
    ],
)
def test_maximising_the_negative_is_minimising(name, train):
    minimising, maximising = train(name), train(name, maximize=True)

    def closure():
        maximising.optimizer.zero_grad()
        gain = -maximising.loss()
        gain.backward()
        return gain

    for _ in range(4):
        minimising.step()
        maximising.optimizer.step(closure)
        assert torch.equal(minimising.theta, maximising.theta)
    here, there = minimising.optimizer.last_step, maximising.optimizer.last_step
    assert there.loss == -here.loss
    assert there.actual_reduction == here.actual_reduction or math.isnan(here.actual_reduction)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_what_is_frozen_or_has_no_gradient_stays(set_to_none, name, train):
    training = train(
        name, groups=lambda model: [*model.parameters(), nn.Parameter(torch.ones(2, dtype=DOUBLE))]
    )
    optimizer = training.optimizer
    frozen, *_, unused = optimizer.param_groups[0]["params"]
    frozen.requires_grad_(False)
    before = frozen.clone(), unused.clone(), training.theta

    def closure():
        if training.kind.residuals:
            return training.closure()
        optimizer.zero_grad(set_to_none)
        loss = training.loss()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert training.status == "ACCEPTED"
    assert torch.equal(frozen, before[0])
    assert torch.equal(unused, before[1])
    assert int((training.theta != before[2]).sum()) == training.theta.numel() - frozen.numel()


def test_without_any_gradient_there_is_no_step(name, train):
    training = train(name)
    before = training.theta
    with pytest.warns(UserWarning, match="found no gradient"):
        training.optimizer.step()
    assert training.status == "NO_GRADIENT"
    assert torch.equal(training.theta, before)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_grad_is_left_as_the_closure_first_made_it(set_to_none, standard, train):
    training = train(standard)
    parameters, seen = list(training.model.parameters()), []

    def closure():
        training.optimizer.zero_grad(set_to_none)
        loss = training.loss()
        loss.backward()
        seen.append([(p.grad, p.grad.clone()) for p in parameters])
        return loss

    for _ in range(3):
        training.optimizer.step(closure)
        for parameter, (grad, values) in zip(parameters, seen[0], strict=True):
            assert parameter.grad is grad
            assert parameter.grad.grad_fn is None
            assert torch.equal(grad, values)
        seen.clear()


def test_a_gradient_that_only_a_candidate_has_is_not_left_behind():
    x, other = (torch.ones(2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    optimizer = NonlinearCG([x, other])
    calls: list[Any] = []

    def closure():
        calls.append(None)
        optimizer.zero_grad()
        loss = x.square().sum() + (other.square().sum() if len(calls) > 1 else 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(calls) > 1
    assert other.grad is None


# --- shapes and types


class Odd(nn.Module):
    """Parameters of no dimension, of no element, and not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))
        self.nothing = nn.Parameter(torch.zeros(0, 3, dtype=DOUBLE))
        self.mixing = nn.Parameter(torch.linspace(-1, 1, 12, dtype=DOUBLE).view(4, 3).t())
        self.head = nn.Linear(4, 3, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x @ self.mixing * self.scale).tanh()) + self.nothing.sum()


def test_parameters_of_any_shape_are_trained(name, train, built, generator):
    model = built(Odd)
    assert not model.mixing.is_contiguous()
    training = train(name, (model, torch.randn(7, 3, generator=generator, dtype=DOUBLE)))
    before, first = training.theta, float(training.loss().detach())
    for _ in range(4):
        training.step()
        assert training.status == "ACCEPTED"
    assert bool((training.theta != before).all())
    assert float(training.loss().detach()) < first
    assert not model.mixing.is_contiguous()
    assert model.scale.shape == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_with_advice(dtype, name, train, built):
    layer = built(lambda: nn.Linear(2, 2)).to(dtype)
    with pytest.raises(ValueError, match=r"float32 or float64.*autocast"):
        train(name, (layer, torch.ones(3, 2, dtype=dtype)))


def test_a_sparse_gradient_is_refused_with_advice(name, train, built):
    embedding = built(lambda: nn.Embedding(5, 3, sparse=True))
    training = train(name, (embedding, torch.tensor([0, 1, 1])))
    before = training.theta
    with pytest.raises(TypeError, match=r"sparse=False"):
        training.step()
    assert torch.equal(training.theta, before)


# --- determinism and randomness


def test_two_runs_are_one(name, train):
    assert_same_path(train(name), train(name))


def dropping(built, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = built(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))
    )
    return model, torch.randn(7, 3, generator=generator, dtype=DOUBLE)


def test_a_step_draws_what_one_call_of_the_closure_draws(name, train, built, generator):
    training = train(name, dropping(built, generator))
    with torch.random.fork_rng():
        for seed in range(4):
            torch.manual_seed(seed)
            training.closure()
            expected = torch.get_rng_state()
            torch.manual_seed(seed)
            training.step()
            assert torch.equal(torch.get_rng_state(), expected)


def test_a_step_without_a_closure_draws_nothing(plain, train, built, generator):
    training = train(plain, dropping(built, generator))
    with torch.random.fork_rng():
        for _ in range(4):
            training.closure()
            before = torch.get_rng_state()
            training.optimizer.step()
            assert torch.equal(torch.get_rng_state(), before)


# --- settings

PARAMETERS = [nn.Parameter(torch.ones(2))]
with torch.random.fork_rng():
    LINEAR = nn.Linear(2, 2)
LIKELIHOOD = {"likelihood": "categorical"}
INVALID: list[tuple[Any, dict[str, Any]]] = [
    (lambda given: NaturalGradient(LINEAR, **LIKELIHOOD | given), {
        "lr": -1.0, "max_kl": 0.0, "damping": -1.0, "likelihood": "poisson",
    }),
    (lambda given: HessianFree(LINEAR, **given), {
        "lr": -1.0, "damping": -1.0, "warm_start": -0.5, "loss": "hinge",
    }),
    (lambda given: LevenbergMarquardt(PARAMETERS, **given), {
        "lr": -1.0, "radius": 0.0, "damping": -1.0, "momentum": -0.1, "solver": "qr",
    }),
    (lambda given: TrustRegionNewton(PARAMETERS, **given), {"lr": -1.0, "radius": -1.0}),
    (lambda given: NonlinearCG(PARAMETERS, **given), {"lr": math.nan}),
    (lambda given: KFAC(LINEAR, **LIKELIHOOD | given), {
        "lr": -1.0, "damping": -1.0, "max_kl": 0.0, "momentum": -1.0, "weight_decay": -1.0,
        "refresh_every": 0, "decay": 1.0, "likelihood": "poisson",
    }),
    (lambda given: AdaptiveKFAC(LINEAR, **LIKELIHOOD | given), {
        "lr": -1.0, "damping": -1.0, "minimum_damping": -1.0, "factor": 1.0, "adapt_every": 0,
        "fraction": 0.0, "refresh_every": 0, "decay": 1.0, "likelihood": "poisson",
    }),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [(make, key, value) for make, invalid in INVALID for key, value in invalid.items()],
)
def test_a_setting_out_of_range_is_named(make, setting, value):
    with pytest.raises(ValueError, match=setting):
        make({setting: value})


def test_there_is_one_source_of_curvature():
    makers: tuple[Any, ...] = (NaturalGradient, HessianFree)
    for make in makers:
        with pytest.raises(ValueError, match="say once where curvature comes from"):
            make(PARAMETERS)
        with pytest.raises(ValueError, match="say once where curvature comes from"):
            make(LINEAR, curvature=lambda: None)
    for make in (KFAC, AdaptiveKFAC):
        with pytest.raises(ValueError, match="needs the model"):
            make(PARAMETERS)

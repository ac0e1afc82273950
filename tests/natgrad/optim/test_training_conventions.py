"""The ways in which people write training loops, and the libraries that write them for people."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from natgrad.flat import flatten
from natgrad.optim import KFAC, NaturalGradient, OptimizerStatus
from natgrad.solvers import cholesky

DOUBLE = torch.float64


def exact(A, b):
    return cholesky(A.to_dense(), b, rtol=1e-12)


# With nothing in them that stops early or draws labels.
EXACT: dict[str, dict[str, Any]] = {
    "NaturalGradient": {"solver": exact},
    "HessianFree": {"rtol": 1e-12, "progress": 1e-14},
    "LevenbergMarquardt": {},
    "KFAC": {"samples": None},
}


# --- which forward passes count


def accumulated(training, parts: int) -> Tensor:
    """The gradient of the mean loss in ``.grad``, from one micro-batch after the other."""
    size = len(training.inputs) // parts
    total = torch.zeros((), dtype=DOUBLE)
    for x, y in zip(training.inputs.split(size), training.targets.split(size), strict=True):
        part = replace(training, inputs=x, targets=y)
        loss = part.loss() / parts
        loss.backward()
        total += loss.detach()
    return total


@pytest.fixture
def twelve(built, generator):
    """A network and 12 inputs, for micro-batches of one size."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    return model, torch.randn(12, 3, generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize("closure", [False, True], ids=["backward", "closure"])
@pytest.mark.parametrize("name", EXACT)
def test_accumulated_gradients_have_the_curvature_of_the_whole_batch(name, closure, train, twelve):
    whole = train(name, copy.deepcopy(twelve), **EXACT[name])
    split = train(name, copy.deepcopy(twelve), **EXACT[name])

    def micro_batches():
        split.optimizer.zero_grad()
        return accumulated(split, parts=3)

    for _ in range(2):
        if closure:
            whole.step()
            split.optimizer.step(micro_batches)
        else:
            whole.plain_step()
            micro_batches()
            split.optimizer.step()
        assert whole.status == split.status == "ACCEPTED"
        torch.testing.assert_close(whole.theta, split.theta, rtol=1e-7, atol=1e-9)


def validate(training) -> None:
    training.model.eval()
    training.model(training.inputs[:2]).sum()
    training.model.train()
    with torch.no_grad():
        training.model(training.inputs[:3]).sum()


def throw_away(training) -> None:
    training.model(training.inputs[:2]).sum()


def take_gradients_and_throw_them_away(training) -> None:
    training.model(training.inputs[:2]).sum().backward()
    training.model.zero_grad()


def take_gradients_of_each_sample(training) -> None:
    """By torch.func, through the very module that is watched."""

    def output(named, x):
        return torch.func.functional_call(training.model, named, (x.unsqueeze(0),)).sum()

    named = dict(training.model.named_parameters())
    torch.func.vmap(torch.func.grad(output), in_dims=(None, 0))(named, training.inputs)


def learn_otherwise(training) -> None:
    """A step of another optimizer, of length zero: it changes nothing but whose gradients count."""
    other = torch.optim.SGD(training.model.parameters(), lr=0.0)
    training.model(training.inputs[:2]).sum().backward()
    other.step()
    other.zero_grad(set_to_none=False)


@pytest.mark.parametrize("between", [validate, throw_away, take_gradients_of_each_sample])
def test_passes_that_the_gradient_does_not_come_from_do_not_count(between, watching, train):
    def step(training):
        training.optimizer.zero_grad()
        between(training)
        training.loss().backward()
        between(training)
        training.optimizer.step()

    reference = train(watching)
    reference.plain_step()
    training = train(watching)
    step(training)
    assert torch.equal(training.theta, reference.theta)


@pytest.mark.parametrize("before", [take_gradients_and_throw_them_away, learn_otherwise])
def test_gradients_that_somebody_else_threw_away_do_not_count(before, watching, train):
    training, reference = train(watching), train(watching)
    for _ in range(2):
        before(training)
    training.loss().backward()
    training.optimizer.step()
    reference.plain_step()
    assert torch.equal(training.theta, reference.theta)


def test_passes_count_again_where_their_gradients_are_taken_again(watching, train):
    training, reference = train(watching), train(watching)
    loss = training.loss()
    loss.backward(retain_graph=True)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    reference.plain_step()
    assert torch.equal(training.theta, reference.theta)


@pytest.mark.parametrize("by", ["the optimizer", "the model"])
def test_zero_grad_may_come_before_or_after_the_forward_pass(by, watching, train):
    before, after = train(watching), train(watching)
    for _ in range(3):
        before.plain_step()
        loss = after.loss()
        (after.optimizer if by == "the optimizer" else after.model).zero_grad()
        loss.backward()
        after.optimizer.step()
        assert torch.equal(before.theta, after.theta)


# --- how models are called


class Called(nn.Module):
    """By two tensors and a flag, which may have names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(1, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, other: Tensor, *, squash: bool = True) -> Tensor:
        hidden = self.first(x) + self.second(other)
        return self.head(hidden.tanh() if squash else hidden)


class Joined(nn.Module):
    """The same of one tensor."""

    def __init__(self, called: Called) -> None:
        super().__init__()
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x[:, :2], x[:, 2:])


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model(x[:, :2], other=x[:, 2:], squash=True),
        lambda model, x: model(other=x[:, 2:], x=x[:, :2]),
    ],
    ids=["mixed", "by name"],
)
def test_models_may_be_called_by_place_and_by_name(call, watching, train, built, generator):
    inputs = torch.randn(7, 3, generator=generator, dtype=DOUBLE)
    reference = train(watching, (built(lambda: Joined(Called())), inputs))
    called = built(Called)
    training = train(watching, (Calling(called, call), inputs), model=called)
    for _ in range(3):
        reference.step()
        training.step()
        torch.testing.assert_close(training.theta, reference.theta, rtol=1e-9, atol=1e-12)


class Calling(nn.Module):
    def __init__(self, called: nn.Module, call) -> None:
        super().__init__()
        self.called, self.call = called, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.called, x)


class Policy(nn.Module):
    """Returns a distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Categorical:
        return Categorical(logits=self.network(x))


@pytest.mark.parametrize("make", [NaturalGradient, KFAC])
def test_models_may_return_distributions(make, built, generator):
    """Discarded ones do not count, and zero_grad may come late, as with tensors."""
    inputs = torch.randn(7, 3, generator=generator, dtype=DOUBLE)
    actions = torch.randint(0, 3, (7,), generator=generator)

    def theta_after(discarded: bool, late: bool) -> Tensor:
        policy = built(Policy)
        optimizer = make(policy)
        if discarded:
            policy(inputs[:3])
        loss = -policy(inputs).log_prob(actions).mean()
        if late:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert optimizer.last_step.status.name == "ACCEPTED"
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    expected = theta_after(False, False)
    assert torch.equal(theta_after(True, False), expected)
    assert torch.equal(theta_after(False, True), expected)


class Wrapper(nn.Module):
    """As DistributedDataParallel, torch.compile and others hold the module that they call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **named):
        return self.module(*args, **named)


@pytest.mark.parametrize("given", ["the module", "the wrapper"])
def test_models_are_watched_through_a_wrapper(given, watching, train):
    plain, wrapped = train(watching), train(watching)
    outside = replace(wrapped, model=Wrapper(wrapped.model))
    if given == "the wrapper":
        outside = train(watching, (outside.model, outside.inputs))
        outside.targets = wrapped.targets
    for _ in range(3):
        plain.step()
        outside.step()
        assert torch.equal(plain.theta, wrapped.theta)


# --- what a forward pass leaves behind


def noisy() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3)
    )


def test_buffers_are_those_after_one_call_of_the_closure(name, train, built, generator):
    training = train(name, (built(noisy), torch.randn(9, 3, generator=generator, dtype=DOUBLE)))
    with torch.random.fork_rng():
        for seed in range(3):
            reference = training.copied(copy.deepcopy)
            torch.manual_seed(seed)
            reference.closure()
            torch.manual_seed(seed)
            training.step()
            buffers = zip(training.model.buffers(), reference.model.buffers(), strict=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in buffers)
    assert int(training.model[1].num_batches_tracked) == 3


@pytest.mark.parametrize("name", ["NaturalGradient", "HessianFree", "LevenbergMarquardt"])
def test_curvature_sees_the_masks_that_the_gradient_saw(name, train, built, generator):
    """So that a small step does what the model of it promises."""
    inputs = torch.randn(9, 3, generator=generator, dtype=DOUBLE)
    settings = {
        "NaturalGradient": {"max_kl": 1e-4},
        "HessianFree": {"damping": 1e2},
        "LevenbergMarquardt": {"radius": 1e-2},
    }[name]
    with torch.random.fork_rng():
        for seed in range(5):
            training = train(name, (built(noisy), inputs), **settings)
            torch.manual_seed(seed)
            training.step()
            report = training.optimizer.last_step
            assert report.actual_reduction == pytest.approx(report.predicted_reduction, rel=0.1)


# --- mixed precision


def in_bfloat16(training) -> Tensor:
    training.optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = training.model(training.inputs)
        assert outputs.dtype == torch.bfloat16
    if training.kind.residuals:
        return (outputs.float() - training.targets).flatten()
    squared = training.kind.squared
    criterion = F.mse_loss if squared else F.cross_entropy
    loss = criterion(outputs.float() if squared else outputs, training.targets)
    loss.backward()
    return loss


@pytest.fixture
def single(built, generator):
    """A network in float32."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))).float()
    return model, torch.randn(9, 3, generator=generator)


def test_a_forward_pass_may_be_in_bfloat16(name, train, single):
    training = train(name, single)
    first = float(training.loss().detach())
    for _ in range(5):
        training.optimizer.step(partial(in_bfloat16, training))
        assert training.status in ("ACCEPTED", "NO_IMPROVEMENT")
    assert float(training.loss().detach()) < 0.98 * first


def test_a_scaled_loss_takes_the_same_step(plain, train, single):
    """By torch.amp.GradScaler; with no bound on the step, behind which a scale could hide."""
    settings = {
        "NaturalGradient": {"max_kl": 1e6},
        "LevenbergMarquardt": {"radius": 1e6, "damping": 1e-3},
    }.get(plain, {"max_kl": None} if plain.startswith("KFAC") else {})
    scaled = train(plain, copy.deepcopy(single), **settings)
    unscaled = train(plain, copy.deepcopy(single), **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    unscaled.plain_step()
    scaled.optimizer.zero_grad()
    scaler.scale(scaled.loss()).backward()
    scaler.step(scaled.optimizer)
    scaler.update()
    assert scaled.status == "ACCEPTED"
    torch.testing.assert_close(scaled.theta, unscaled.theta, rtol=1e-4, atol=1e-5)


def test_an_overflow_of_a_scaled_loss_is_skipped(plain, train, single):
    training = train(plain, single)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    before = training.theta
    scaler.scale(training.loss() * torch.inf).backward()
    scaler.step(training.optimizer)
    scaler.update()
    assert torch.equal(training.theta, before)
    assert training.optimizer.last_step is None
    assert scaler.get_scale() < 2.0**12
    training.plain_step()
    assert training.status == "ACCEPTED"


def test_a_scaler_refuses_a_closure_by_itself(name, train, single):
    training = train(name, single)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(training.optimizer, closure=training.closure)


# --- libraries that own the loop


def test_closures_as_lightning_makes_them(standard, train):
    """Forward, zero_grad, backward, in this order, and passed by name."""
    training, reference = train(standard), train(standard)

    def closure():
        loss = training.loss()
        training.optimizer.zero_grad()
        loss.backward()
        return loss

    for _ in range(2):
        training.optimizer.step(closure=closure)
        reference.step()
        assert torch.equal(training.theta, reference.theta)


def test_a_closure_may_return_nothing(plain, train):
    """As Lightning's do where training_step returns nothing: then nothing is searched."""
    training, reference = train(plain), train(plain)
    for step in range(2):
        searches = not isinstance(training.optimizer, KFAC)
        told = searches and step == 0
        with pytest.warns(UserWarning, match="returned None") if told else nullcontext():
            assert training.optimizer.step(closure=lambda: training.closure() and None) is None
        reference.plain_step()
        assert torch.equal(training.theta, reference.theta)


class Wrapped(torch.optim.Optimizer):
    """What Accelerate's AcceleratedOptimizer does, by hand: it holds an optimizer, moves its state
    by load_state_dict(state_dict()), and hands the closure through by place."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    @property
    def param_groups(self):  # type: ignore[override]
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none=None):
        self.optimizer.zero_grad(**({} if set_to_none is None else {"set_to_none": set_to_none}))

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.parametrize("closure", [False, True], ids=["backward", "closure"])
def test_optimizers_as_accelerate_wraps_them(plain, closure, train):
    training, reference = train(plain), train(plain)
    training.optimizer = Wrapped(training.optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(training.optimizer.optimizer, 1, gamma=1.0)
    for _ in range(2):
        for each in (training, reference):
            each.step() if closure else each.plain_step()
        scheduler.step()
        assert torch.equal(training.theta, reference.theta)


def test_the_real_lightning_trains(standard, train):
    lightning = pytest.importorskip("pytorch_lightning")
    training, reference = train(standard), train(standard)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self):
            super().__init__()
            self.model = training.model

        def training_step(self, batch, index):
            return training.loss()

        def configure_optimizers(self):
            return training.optimizer

    trainer = lightning.Trainer(
        max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    with torch.random.fork_rng():  # its loader draws a seed
        trainer.fit(Module(), torch.utils.data.DataLoader([torch.zeros(1)] * 4))  # type: ignore[arg-type]
    for _ in range(4):
        reference.step()
    assert torch.equal(training.theta, reference.theta)


def test_the_real_accelerate_trains(standard, train):
    accelerate = pytest.importorskip("accelerate")
    training, reference = train(standard), train(standard)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(training.model, training.optimizer)
    accelerated = replace(training, model=model, optimizer=optimizer)

    def closure():
        optimizer.zero_grad()
        loss = accelerated.loss()
        accelerator.backward(loss)
        return loss

    for _ in range(4):
        optimizer.step(closure)
        reference.step()
        assert torch.equal(training.theta, reference.theta)
    if not training.kind.closure:
        closure()
        optimizer.step()
        reference.plain_step()
        assert torch.equal(training.theta, reference.theta)


def test_several_ranks_are_refused(watching, train, monkeypatch):
    """Each would step by the curvature of its own part of the batch, and they would part ways."""
    training = train(watching)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="2 ranks"):
        training.step()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [NaturalGradient, KFAC])
def test_the_whole_model_may_be_in_a_checkpoint(make, reentrant, built, generator):
    """Whose second run, in the backward pass, is no batch of its own and ends no other."""
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (12,), generator=generator)
    paths = []
    for wrapped in (False, True):
        model = built(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
        optimizer = make(model, likelihood="categorical")
        call = partial(checkpoint, model, use_reentrant=reentrant) if wrapped else model
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(call(x.clone().requires_grad_()), y).backward()
            optimizer.step()
            assert optimizer.last_step.status is OptimizerStatus.ACCEPTED
        paths.append(flatten(model.parameters()))
    torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-12)

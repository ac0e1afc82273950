"""Nothing piles up: not over steps, not in a model, not in losses that the caller keeps."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

DOUBLE = torch.float64


@pytest.fixture(scope="module", autouse=True)
def _older_objects_are_not_looked_at():
    """Or each of the collections would go through all that was ever imported."""
    torch.optim.SGD([torch.zeros(1)], lr=1.0)  # the first optimizer imports torch's compiler
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), Tensor) for found in gc.get_objects())


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Inside, only what nothing refers to is freed: a cycle lives on, and what it holds with it.
    The collector counts objects, not bytes; it may wait for long while graphs fill a device."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def minibatch(training, index: int):
    """Another part of the batch in every step, so that there is something to do in each."""
    chosen = torch.arange(4) + index % 4
    return replace(training, inputs=training.inputs[chosen], targets=training.targets[chosen])


def test_two_hundred_steps_hold_no_more_than_fifty(name, train):
    """With and without a closure in turn, where both can be."""
    few = {"max_iterations": 5} if name in ("NaturalGradient", "HessianFree") else {}
    training = train(name, **few)

    def after(steps: range) -> int:
        for index in steps:
            step = minibatch(training, index)
            step.step() if training.kind.closure or index % 2 else step.plain_step()
        training.optimizer.zero_grad()
        return live_tensors()

    assert after(range(50)) == after(range(50, 200))


def test_no_graph_hangs_on_grad(standard, train):
    training = train(standard)
    for _ in range(3):
        training.step()
        assert all(p.grad.grad_fn is None for p in training.model.parameters())
        assert not any(p.grad.requires_grad for p in training.model.parameters())


def test_inputs_die_with_their_step(name, train):
    """By the count of references alone, whether the step was accepted or refused."""
    training = train(name)
    training.step()
    with without_garbage_collection():
        for loss_scale in (1.0, torch.nan):
            step = replace(training, inputs=training.inputs.clone())
            watched = weakref.ref(step.inputs)
            training.optimizer.step(lambda step=step, scale=loss_scale: step.closure() * scale)
            del step
            assert watched() is None


def test_inputs_die_with_a_step_without_a_closure(plain, train):
    training = train(plain)
    with without_garbage_collection():
        for _ in range(4):
            step = replace(training, inputs=training.inputs.clone())
            watched = weakref.ref(step.inputs)
            step.plain_step()
            del step
            assert watched() is None


def test_inputs_die_with_a_loss_that_is_thrown_away(watching, train):
    training = train(watching)
    with without_garbage_collection():
        inputs = training.inputs.clone()
        watched = weakref.ref(inputs)
        loss = training.model(inputs).sum()
        del inputs
        assert watched() is not None
        del loss
        assert watched() is None


def test_inputs_die_with_the_optimizer(watching, train):
    training = train(watching)
    inputs = training.inputs.clone()
    watched = weakref.ref(inputs)
    training.model(inputs).sum().backward()
    del inputs
    assert watched() is not None  # the next step is for them
    training.optimizer = None
    gc.collect()
    assert watched() is None


def test_inputs_die_with_zero_grad(watching, train):
    training = train(watching)
    with without_garbage_collection():
        inputs = training.inputs.clone()
        watched = weakref.ref(inputs)
        training.model(inputs).sum().backward()
        del inputs
        training.optimizer.zero_grad()
        assert watched() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_model_whose_optimizer_never_steps_collects_nothing(set_to_none, watching, train):
    """Warmed up by another optimizer, say."""
    training = train(watching)
    other = torch.optim.Adam(training.model.parameters(), lr=1e-3)

    def learn(steps: int) -> int:
        for _ in range(steps):
            other.zero_grad(set_to_none)
            training.model(training.inputs.clone()).square().mean().backward()
            other.step()
        return live_tensors()

    assert learn(10) == learn(40)


def test_gradients_that_are_only_looked_at_collect_nothing(watching, train):
    """Norms of gradients, say, without any step; the gradients are the model's to throw away."""
    training = train(watching)

    def look(times: int) -> int:
        for _ in range(times):
            training.model.zero_grad()
            training.model(training.inputs.clone()).square().mean().backward()
        return live_tensors()

    assert look(3) == look(20)


class Remembering(nn.Module):
    """A network that says where its hidden activations are, as long as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        self.hidden = weakref.ref(hidden)
        return self.second(hidden)


def test_losses_that_are_kept_hold_no_activations(standard, train, built, generator):
    """As in ``losses.append(optimizer.step(closure))``."""
    model = built(Remembering)
    training = train(standard, (model, torch.randn(7, 3, generator=generator, dtype=DOUBLE)))
    hidden = []

    def closure():
        loss = training.closure()
        hidden.append(model.hidden)
        return loss

    with without_garbage_collection():
        losses = [training.optimizer.step(closure) for _ in range(3)]
        assert len(losses) == 3
        assert [reference() for reference in hidden] == [None] * len(hidden)


def test_the_optimizer_dies_with_its_last_name(name, train):
    """No hook of the model, and no weakref's callback, keeps it."""
    training = train(name)
    training.step()
    watched = weakref.ref(training.optimizer)
    training.optimizer = None
    gc.collect()
    assert watched() is None


def test_optimizers_of_the_past_leave_no_hooks(watching, train):
    training = train(watching)
    make, model = type(training.optimizer), training.model
    for _ in range(5):
        training.optimizer = make(model, **training.kind.settings)
        gc.collect()
    assert len(model._forward_hooks) == 1
    assert len(model._forward_pre_hooks) == 1

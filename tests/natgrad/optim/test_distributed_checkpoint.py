"""torch.distributed.checkpoint: a fresh optimizer's template takes a checkpoint whole, and the run
goes on bitwise."""

import pytest
import torch
from torch import nn

dcp = pytest.importorskip("torch.distributed.checkpoint")
state_dict = pytest.importorskip("torch.distributed.checkpoint.state_dict")

# torch's own: that no process group is there, its deprecations, and float() of its own tensors.
pytestmark = pytest.mark.filterwarnings("ignore")


def dense():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )


MODELS = {dense: (8, 4), convolutional: (8, 1, 4, 4)}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("network", MODELS)
def test_a_fresh_optimizer_goes_on_bitwise(name, network, strict, train, built, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MODELS[network], generator=generator, dtype=torch.float64)

    def begun():
        return train(name, network=(built(network), x))

    run = begun()
    for _ in range(4):
        run.step()
    model, optimizer = state_dict.get_state_dict(run.model, run.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path)
    other = begun()
    model, optimizer = state_dict.get_state_dict(other.model, other.optimizer)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path)
    state_dict.set_state_dict(
        other.model, other.optimizer, model_state_dict=model, optim_state_dict=optimizer,
        options=state_dict.StateDictOptions(strict=strict),
    )  # fmt: skip
    assert torch.equal(other.theta, run.theta)
    for _ in range(4):
        run.step()
        other.step()
        assert other.status == run.status
        assert torch.equal(other.theta, run.theta)


def test_the_template_of_a_step_without_gradient_is_no_step(name, train):
    """What torch makes the template by: zeros in .grad, and step(closure=None)."""
    run, untouched = train(name), train(name)
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = run.theta
    run.optimizer.step(closure=None)
    assert run.status == "CONVERGED"
    assert torch.equal(run.theta, before)
    run.optimizer.zero_grad()
    for _ in range(3):
        run.step()
        untouched.step()
        assert torch.equal(run.theta, untouched.theta)
    held, never = run.optimizer.state_dict(), untouched.optimizer.state_dict()
    assert {k: set(v) for k, v in held["state"].items()} == {
        k: set(v) for k, v in never["state"].items()
    }

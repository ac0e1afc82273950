"""First-order steps: optimizers by name, ascent along gradients of our own, the way back."""

import inspect
import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from natgrad.flat import flatten, gradient
from rl_plugins import A2C, PPO, StepStatus, UsageError
from rl_plugins.parts.first_order import Snapshot, ascend
from rl_plugins.parts.optimizers import make_optimizer
from rl_plugins.policies import mlp

OTHERS = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}  # see the test of what they say
NAMES = sorted(
    name
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in OTHERS
)


class Discrete(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 4, output_gain=1.0, generator=generator).double()

    def forward(self, x):
        return Categorical(logits=self.network(x))


def batch(generator, size=50):
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    actions = torch.randint(4, (size,), generator=generator)
    return x, actions, torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_any_first_order_optimizer_of_torch_climbs(algorithm, name, generator):
    policy = Discrete(generator)
    learner = algorithm(policy, optimizer=name, learning_rate=1e-3)
    x, actions, advantages = batch(generator)
    for _ in range(4):
        report = learner.step(x, actions, advantages)
        assert report.status is StepStatus.TAKEN
        assert report.kl > 0
    final = torch.log_softmax(policy.network(x), dim=-1).gather(1, actions[:, None])[:, 0]
    assert report.improvement > 0
    assert final.isfinite().all()


def test_an_optimizer_takes_the_step_that_torch_takes_down_the_negated_objective(generator):
    first, second = Discrete(generator), Discrete(generator)
    x, actions, advantages = batch(generator)
    ours = make_optimizer("Adam", list(first.parameters()), 1e-2)
    theirs = torch.optim.Adam(second.parameters(), lr=1e-2)
    for _ in range(3):
        second.load_state_dict(first.state_dict())  # rounding is not to grow from step to step
        norm = ascend(
            (first(x).log_prob(actions) * advantages).mean(), list(first.parameters()), ours, 0.1
        )
        theirs.zero_grad()
        (-(second(x).log_prob(actions) * advantages).mean()).backward()
        expected = torch.nn.utils.clip_grad_norm_(second.parameters(), 0.1)
        theirs.step()
        assert torch.allclose(norm, expected, rtol=1e-9)
        assert float(norm) > 0.1
        # An entry near 0 has its rounding, 1e-17 where the norm is 0.1, times lr / ε = 1e6.
        pair = flatten(first.parameters()), flatten(second.parameters())
        assert torch.allclose(*pair, rtol=0, atol=1e-9)
    assert all(p.grad is None for p in first.parameters())


def test_a_parameter_that_the_objective_does_not_use_stays_without_the_optimizers_momentum(
    generator,
):
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = make_optimizer("Adam", [used, unused], 0.1)
    ascend((used + unused).sum(), [used, unused], optimizer)
    moved = unused.detach().clone()
    norm = ascend(used.sum(), [used, unused], optimizer)
    assert torch.equal(unused, moved)
    assert math.isclose(float(norm), math.sqrt(2), rel_tol=1e-6)


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Adagrad"])
def test_after_a_snapshot_is_restored_everything_goes_on_as_if_nothing_had_been(name, generator):
    def run(disturbed):
        policy = Discrete(torch.Generator().manual_seed(1))
        parameters = list(policy.parameters())
        optimizer = make_optimizer(name, parameters, 1e-2)
        data = batch(torch.Generator().manual_seed(2))
        for k in range(6):
            if disturbed and k in (0, 3):  # before the optimizer has a state, and after
                snapshot = Snapshot(parameters, optimizer)
                ascend(math.nan * policy(data[0]).log_prob(data[1]).sum(), parameters, optimizer)
                assert flatten(parameters).isnan().any()
                snapshot.restore()
            ascend((policy(data[0]).log_prob(data[1]) * data[2]).mean(), parameters, optimizer)
        return flatten(parameters)

    assert torch.equal(run(disturbed=True), run(disturbed=False))


def test_a_snapshot_as_context_goes_back_for_an_exception_only(generator):
    policy = Discrete(generator)
    parameters = list(policy.parameters())
    before = flatten(parameters)
    optimizer = make_optimizer("Adam", parameters, 0.1)
    x, actions, _ = batch(generator)

    def interrupted():
        with Snapshot(parameters, optimizer):
            ascend(policy(x).log_prob(actions).mean(), parameters, optimizer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(flatten(parameters), before)
    assert not optimizer.state_dict()["state"]
    with Snapshot(parameters, optimizer):
        ascend(policy(x).log_prob(actions).mean(), parameters, optimizer)
    assert not torch.equal(flatten(parameters), before)


def test_an_optimizer_of_ones_own_is_found_by_module_and_class(monkeypatch, generator):
    class Sign(torch.optim.Optimizer):
        """Without a closure, and without fused kernels."""

        def __init__(self, parameters, lr):
            super().__init__(parameters, {"lr": lr})

        def step(self):  # type: ignore[override]
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.sub_(group["lr"] * parameter.grad.sign())

    module: Any = types.ModuleType("optimizers_of_a_friend")
    module.Sign = Sign
    monkeypatch.setitem(sys.modules, "optimizers_of_a_friend", module)
    policy = Discrete(generator)
    parameters = list(policy.parameters())
    x, actions, advantages = batch(generator)
    before = flatten(parameters)
    g = gradient((policy(x).log_prob(actions) * advantages).mean(), parameters)
    name = "optimizers_of_a_friend:Sign"
    A2C(policy, optimizer=name, learning_rate=1e-3).step(x, actions, advantages)
    assert torch.allclose(flatten(parameters) - before, 1e-3 * g.sign(), rtol=1e-9)
    with pytest.raises(UsageError, match=r"'optimizers_of_a_friend:Sgn'; did you mean 'Sign'"):
        PPO(policy, optimizer="optimizers_of_a_friend:Sgn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Adm", "unknown optimizer 'Adm'; did you mean 'Adam'"),
        ("adam", "did you mean 'Adam'"),
        ("torch.optim:AdmW", "did you mean 'AdamW'"),
        ("xyzzy", "known: ASGD, .*SGD"),
        ("lr_scheduler", "unknown optimizer 'lr_scheduler'"),
        ("Optimizer", "unknown optimizer 'Optimizer'"),
        ("collections:OrderedDict", "unknown optimizer 'collections:OrderedDict'"),
        ("no_such_package:Adam", "cannot import 'no_such_package'"),
        ("..relative:Adam", "cannot import '..relative'"),
        ("LBFGS", "'LBFGS' evaluates the objective anew; take a first-order one"),
        pytest.param(
            "Muon",
            "'Muon': Muon only supports 2D parameters",
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has none yet"),
        ),
    ],
)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_name_that_is_none_or_cannot_work_says_so_when_the_algorithm_is_made(
    algorithm, name, message, generator
):
    with pytest.raises(UsageError, match=message):
        algorithm(Discrete(generator), optimizer=name)

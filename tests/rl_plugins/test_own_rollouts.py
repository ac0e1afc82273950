"""Steps from one's own rollouts: no environment library, sequences with masks, tokens."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import scaled_dot_product_attention

from natgrad import LineSearchStatus
from natgrad.flat import flatten, gradient
from rl_plugins import A2C, NPG, PPO, TRPO, StepStatus
from rl_plugins.policies import mlp

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

PLAIN_STEPS = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    asked_for = []

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("gymnasium", "matplotlib", "rich", "tyro"):
            self.asked_for.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())

import torch
from torch import nn
from torch.distributions import Categorical
import rl_plugins as rl

class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return Categorical(logits=self.network(x))

class Actor(nn.Linear):
    def forward(self, x):
        return torch.tanh(super().forward(x))

class Critic(nn.Linear):
    def forward(self, x, actions):
        return super().forward(torch.cat([x, actions], dim=1)).squeeze(1)

x, A = torch.randn(32, 3), torch.randn(32)
for algorithm in (rl.NPG, rl.TRPO, rl.PPO, rl.A2C, rl.ACKTR):
    report = algorithm(Policy()).step(x, torch.randint(4, (32,)), A)
    assert report.kl > 0, algorithm
    print(algorithm.__name__)
for algorithm, critics in ((rl.DDPG, 1), (rl.TD3, 2)):
    learner = algorithm(Actor(3, 2), *(Critic(5, 1) for _ in range(critics)))
    report = learner.step(x, torch.rand(32, 2), A, torch.randn(32, 3), A > 1)
    assert report.updates == 1, algorithm
    print(algorithm.__name__)
assert rl.gae(*[torch.zeros(4, 2)] * 3, *[torch.zeros(4, 2) > 0] * 2, discount=1, decay=1).shape
assert Refuse.asked_for == [], Refuse.asked_for
try:
    rl.train
except ModuleNotFoundError as error:
    print("train needs", error)
"""


def test_all_algorithms_step_where_gymnasium_matplotlib_rich_and_tyro_are_not_installed():
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_STEPS], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    *names, last = run.stdout.split("\n")[:-1]
    assert names == ["NPG", "TRPO", "PPO", "A2C", "ACKTR", "DDPG", "TD3"]
    assert last.startswith("train needs gymnasium")


class Tokenwise(nn.Module):
    """Every position by itself, from (B, T, 3) or (B, 3)."""

    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 4, output_gain=1.0, generator=generator).double()

    def forward(self, x):
        return Categorical(logits=self.network(x))


class Causal(nn.Module):
    """One layer of causal attention: what a position says depends on those before it."""

    def __init__(self, generator):
        super().__init__()
        self.inputs = mlp(3, (), 24, output_gain=1.0, generator=generator).double()
        self.outputs = mlp(8, (), 4, output_gain=1.0, generator=generator).double()

    def forward(self, x):
        queries, keys, values = self.inputs(x).chunk(3, dim=-1)
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return Categorical(logits=self.outputs(mixed))


# Of the first-order ones SGD: two layouts sum a gradient in two orders, δ ~ 1e-16 apart, and a step
# of Adam or RMSprop makes of δ up to lr δ / ε where an entry is near 0, one of SGD lr δ everywhere.
FIRST_ORDER: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 0.1}
LEARNERS = {
    "NPG": NPG,
    "NPG, strided": lambda policy: NPG(policy, fisher_stride=3),
    "TRPO": TRPO,
    "TRPO, in chunks": lambda policy: TRPO(policy, fisher_chunk_size=4),
    "A2C": lambda policy: A2C(policy, entropy_coefficient=0.1, **FIRST_ORDER),
    "PPO": lambda policy: PPO(policy, batch_size=16, entropy_coefficient=0.1, **FIRST_ORDER),
    "PPO, penalised": lambda policy: PPO(policy, batch_size=16, objective="penalty", **FIRST_ORDER),
    "PPO, bounded": lambda policy: PPO(policy, max_kl=1e-3, **FIRST_ORDER),
}


@pytest.fixture(params=[Tokenwise, Causal], ids=["tokenwise", "causal"])
def policy(request, generator):
    return request.param(generator)


@pytest.fixture(params=LEARNERS)
def learner_of(request):
    return LEARNERS[request.param]


def ragged(generator, count=12, length=6):
    """States, actions, advantages and mask of sequences of 1 to ``length`` steps."""
    x = torch.randn(count, length, 3, generator=generator, dtype=torch.float64)
    actions = torch.randint(4, (count, length), generator=generator)
    advantages = torch.randn(count, length, generator=generator, dtype=torch.float64)
    ends = torch.randint(1, length + 1, (count, 1), generator=generator)
    ends[0] = length
    return x, actions, advantages, torch.arange(length) < ends


def padded(batch, steps, generator):
    """The same batch with more padding, which holds whatever it likes."""
    x, actions, advantages, mask = batch
    count = len(x)
    noise = 100 * torch.randn(count, steps, 3, generator=generator, dtype=x.dtype)
    return (
        torch.cat([x, noise], dim=1),
        torch.cat([actions, torch.full((count, steps), -100)], dim=1),
        torch.cat([advantages, torch.full((count, steps), math.nan)], dim=1),
        torch.cat([mask, torch.zeros(count, steps, dtype=torch.bool)], dim=1),
    )


def stepped(policy, learner_of, batch):
    """The policy's parameters after one step from where they are, which they go back to."""
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    report = learner_of(policy).step(*batch)
    assert report.status in (LineSearchStatus.ACCEPTED, StepStatus.TAKEN)
    result = flatten(policy.parameters())
    policy.load_state_dict(start)
    assert not torch.equal(result, flatten(policy.parameters()))
    return result, report


def test_padding_changes_nothing(policy, learner_of, generator):
    batch = ragged(generator)
    expected, tight = stepped(policy, learner_of, batch)
    found, loose = stepped(policy, learner_of, padded(batch, 9, generator))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)
    assert abs(loose.kl - tight.kl) < 1e-9 * tight.kl
    assert abs(loose.entropy - tight.entropy) < 1e-12
    assert abs(loose.gradient_norm - tight.gradient_norm) < 1e-9 * tight.gradient_norm


@pytest.mark.parametrize("name", ["NPG", "NPG, strided", "TRPO", "TRPO, in chunks", "A2C"])
def test_neither_do_sequences_of_padding_alone(policy, name, generator):
    batch = ragged(generator)
    expected, _ = stepped(policy, LEARNERS[name], batch)
    wider = [torch.cat([leaf[:5], leaf[:2], leaf[5:]]) for leaf in batch]
    wider[-1][5:7] = False
    found, _ = stepped(policy, LEARNERS[name], wider)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


def test_a_minibatch_of_padding_alone_is_no_step(generator):
    """Momentum would go on without anything learnt, and Adam count a step."""
    policy = Tokenwise(generator)
    x, actions, advantages, mask = ragged(generator, count=5)
    mask[1:3] = False
    ppo = PPO(policy, batch_size=1, epochs=4)
    assert ppo.step(x, actions, advantages, mask).status is StepStatus.TAKEN
    taken = {int(state["step"]) for state in ppo.state_dict()["optimizers"][0]["state"].values()}
    assert taken == {4 * 3}


@pytest.mark.parametrize("name", ["NPG", "TRPO", "A2C"])
def test_where_positions_are_independent_sequences_are_the_list_of_their_steps(name, generator):
    policy = Tokenwise(generator)
    *batch, mask = ragged(generator)
    expected, _ = stepped(policy, LEARNERS[name], [leaf[mask] for leaf in batch])
    found, _ = stepped(policy, LEARNERS[name], [*batch, mask])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


def test_where_they_are_not_it_is_every_sequence_run_by_itself(generator):
    policy = Causal(generator)
    parameters = list(policy.parameters())
    x, actions, advantages, mask = ragged(generator)
    total = torch.zeros_like(flatten(parameters))
    for i, length in enumerate(mask.sum(dim=1)):
        log_prob = policy(x[i : i + 1, :length]).log_prob(actions[i : i + 1, :length])
        total += gradient((log_prob * advantages[i, :length]).sum(), parameters)
    ascent: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 1.0, "max_gradient_norm": 1e9}
    found, _ = stepped(policy, lambda p: A2C(p, **ascent), (x, actions, advantages, mask))
    expected = flatten(parameters) + total / mask.sum()
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_sequences_of_a_minibatch_hold_about_so_many_steps_that_count(generator):
    policy = Tokenwise(generator)
    x, actions, advantages, _ = ragged(generator, count=20, length=12)
    mask = (torch.arange(12) < 4).expand(20, 12)
    sizes = []
    policy.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    PPO(policy, batch_size=24, epochs=1).step(x, actions, advantages, mask)
    assert sizes == [20, 6, 6, 6, 2, 20]


def example(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    assert specification.loader is not None
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["TRPO", "NPG", "PPO", "A2C"])
def test_the_transformer_of_the_example_learns_the_best_answer(name):
    module = example("token_policy")
    with torch.random.fork_rng():
        first, last, policy = module.train(name)
    assert first < 0.3
    assert last > 0.95
    # The best answer: after every token, and after any text that counts up to it.
    tokens = torch.arange(module.VOCABULARY)
    texts = (tokens[:, None] + torch.arange(module.LENGTH)) % module.VOCABULARY
    following = policy(texts).mode
    assert torch.equal(following, (texts + 1) % module.VOCABULARY)


def test_the_policy_of_the_example_reads_nothing_that_comes_later():
    module = example("token_policy")
    with torch.random.fork_rng():
        policy = module.TokenPolicy()
        tokens = torch.randint(module.VOCABULARY, (4, 6))
    changed = tokens.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % module.VOCABULARY
    before, after = policy(tokens).logits, policy(changed).logits
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-6)


def test_the_example_prints_one_line_for_each_algorithm(monkeypatch, capsys):
    module = example("token_policy")
    monkeypatch.setattr(module, "train", lambda name: (0.125, 1.0, None))
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(module.LEARNERS)
    assert all("0.12 -> 1.00" in line for line in lines)

"""What users of other libraries suffered from, and ours must not do: one test a complaint.

The names say the defect; the comments name the report. The numbers are those of our list of the
field's complaints.
"""

import csv
import math
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from natgrad import LineSearchStatus
from natgrad.flat import flatten, gradient
from rl_plugins import (
    A2C,
    NPG,
    PPO,
    TRPO,
    ACKTRConfig,
    StepStatus,
    TRPOConfig,
    evaluate_run,
    train,
)
from rl_plugins.agents import TRPOAgent
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.parts.surrogate import Surrogate
from rl_plugins.policies import mlp

QUICK: dict[str, Any] = {
    "total_steps": 400, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "evaluations": 0, "evaluation_episodes": 3, "seed": 5,
}  # fmt: skip


class Gaussian(nn.Module):
    """A policy whose parameters have names that other code filters by."""

    def __init__(self, generator):
        super().__init__()
        self.value_like = mlp(3, (8,), 2, output_gain=1.0, generator=generator)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        mean = self.value_like(x)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


@pytest.fixture
def policy(generator):
    return Gaussian(generator).double()


@pytest.fixture
def batch(policy, generator):
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    actions = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    return x, actions, torch.randn(64, generator=generator, dtype=torch.float64)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("algorithm", [TRPO, NPG])
def test_01_no_curvature_gives_a_refused_step_and_no_nan(algorithm, policy, batch):
    """rllab#24, tensorforce#26: √ of a negative or zero sᵀKs went through the graph as NaN."""
    x, actions, _ = batch
    before = flatten(policy.parameters())
    report = algorithm(policy).step(x, actions, torch.zeros(64, dtype=torch.float64))
    assert report.status is LineSearchStatus.ZERO_STEP
    assert torch.equal(flatten(policy.parameters()), before)


@pytest.mark.parametrize("algorithm", [TRPO, NPG, PPO, A2C])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_02_a_nan_is_never_filled_in_nor_stepped_on(algorithm, poison, policy, batch):
    """garage#1053 replaced NaN in the step by 0, and a NaN step size by 1."""
    x, actions, advantages = batch
    advantages[3] = poison
    before = flatten(policy.parameters())
    report = algorithm(policy).step(x, actions, advantages)
    assert report.status in (LineSearchStatus.NONFINITE, StepStatus.NONFINITE)
    assert torch.equal(flatten(policy.parameters()), before)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e20])
def test_03_the_step_does_not_depend_on_the_scale_of_the_advantages(scale, generator, batch):
    """MushroomRL#79, baselines#1042: an absolute tolerance of 1e-10 on the residual."""
    x, actions, advantages = batch
    ends, residuals = [], []
    for factor in (1.0, scale):
        policy = Gaussian(torch.Generator().manual_seed(0)).double()
        report = NPG(policy).step(x, actions, factor * advantages)
        ends.append(flatten(policy.parameters()))
        residuals.append(report.cg_residual)
    assert torch.allclose(ends[0], ends[1], rtol=1e-8)
    assert residuals[0] == pytest.approx(residuals[1], rel=1e-3)


def test_04_a_failed_line_search_leaves_the_old_parameters(policy, batch):
    """Tianshou#1287, wojzaremba/trpo#1: the last candidate stayed in the policy."""
    before = flatten(policy.parameters())
    trpo = TRPO(policy, damping=1000.0, max_kl=20.0, max_backtracks=1, accept_ratio=0.999)
    report = trpo.step(*batch)
    assert report.status is not LineSearchStatus.ACCEPTED
    assert report.step_fraction == 0
    assert torch.equal(flatten(policy.parameters()), before)


@pytest.mark.parametrize("algorithm", [TRPO, NPG, PPO, A2C])
def test_05_no_parameter_is_left_out_by_its_name_or_its_place(algorithm, policy, batch):
    """baselines#262: log σ; sb3-contrib: whatever has "value" in its name."""
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    algorithm(policy).step(*batch)
    for name, parameter in policy.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_06_the_kl_is_zero_before_the_step_with_its_gradient_and_not_after(policy, batch):
    """sb3-contrib#240, spinningup#209 and many more: "why is KL always 0?"."""
    surrogate = Surrogate(policy, *batch)
    kl = surrogate.kl(policy(batch[0]))
    assert float(kl.detach()) == 0
    assert float(gradient(kl, list(policy.parameters())).norm()) < 1e-12
    assert 0 < TRPO(policy).step(*batch).kl <= 0.01


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_07_networks_of_fused_recurrent_layers_are_updated(layer, generator):
    """pytorch#5261, #134901: fused kernels have no second derivative."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                self.layer = layer(3, 6, batch_first=True)
                self.output = nn.Linear(6, 4)

        def forward(self, x):
            return Categorical(logits=self.output(self.layer(x)[0]))

    policy = Recurrent()
    x = torch.randn(8, 5, 3, generator=generator)
    actions = torch.randint(4, (8, 5), generator=generator)
    report = TRPO(policy).step(x, actions, torch.randn(8, 5, generator=generator))
    assert report.status is LineSearchStatus.ACCEPTED
    assert 0 < report.kl <= 0.01


class Hybrid(gym.Env):
    """Shows two bits, asks for both in a Dict of every kind of action; hides the mask's bit.

    One-step episodes pay 1 for the right lever and −|push − 0.5|; lever 2 is never valid.
    """

    observation_space = spaces.Dict(seen=spaces.MultiBinary(2), action_mask=spaces.MultiBinary(5))
    action_space = spaces.Dict(
        lever=spaces.Discrete(3), dials=spaces.MultiDiscrete([2]), push=spaces.Box(0, 1, (1,))
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bits = self.np_random.integers(0, 2, 2).astype(np.int8)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        assert action["lever"] != 2, "an invalid action was taken"
        reward = float(action["lever"] == self.bits[0]) + float(action["dials"][0] == self.bits[1])
        reward -= float(abs(action["push"][0] - 0.5))
        self.steps += 1
        return self._observe(), reward, self.steps == 4, False, {}

    def _observe(self):
        mask = np.array([1, 1, 0, 1, 1], dtype=np.int8)  # in the order of the action space
        return {"seen": self.bits * (self.steps == 0), "action_mask": mask}


@pytest.fixture(scope="module", autouse=True)
def _tasks():
    gym.register("test/Hybrid-v0", Hybrid)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "steps", "settings"),
    [
        ("trpo", 8_000, {"max_kl": 0.1}),
        ("npg", 8_000, {"max_kl": 0.1}),
        ("ppo", 8_000, {"learning_rate": 0.01, "epochs": 4, "batch_size": 128}),
        ("a2c", 20_000, {"learning_rate": 0.03}),
    ],
)
def test_08_and_09_hybrid_actions_masks_and_memory_work_together(
    algorithm, steps, settings, tmp_path
):
    """sb3-contrib#83, #101, #287, SB3#731: MultiDiscrete, Dict actions, masks with recurrence.

    The bits are seen in the first of four steps only: without memory the best return is 5.
    """
    run = train(
        algorithm, "test/Hybrid-v0", run_dir=tmp_path / "run", total_steps=steps,
        environments=16, rollout_length=32, memory_size=16, hidden_sizes=(16,), evaluations=0,
        discount=0.5, **settings,
    )  # fmt: skip
    assert run.evaluation is not None
    assert run.evaluation.mean > 6


def test_10_a_time_limit_is_not_an_end(tmp_path):
    """CleanRL#198, skrl#224: with a reward of 1 a step forever, V is 1 / (1 − γ), not less."""

    class Endless(gym.Env):
        observation_space = spaces.Box(-1, 1, (1,))
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            return np.zeros(1, dtype=np.float32), 1.0, False, False, {}

    gym.register("test/Endless-v0", Endless, max_episode_steps=5)  # type: ignore[arg-type]
    environments = make_environments("test/Endless-v0", 4)
    config = TRPOConfig(hidden_sizes=(4,), discount=0.8)
    generator = torch.Generator().manual_seed(0)
    trpo = TRPOAgent.build(
        environments.single_observation_space, environments.single_action_space, config, generator
    )
    collector = RolloutCollector(
        environments, trpo.behaviour(4, explore=True), seed=0, generator=generator
    )
    for _ in range(40):
        trpo.update(collector.collect(16))
    value = float(trpo.actor_critic.critic(torch.zeros(1, 1)).detach())
    assert value == pytest.approx(1 / (1 - 0.8), rel=0.02)


def test_12_the_statistics_of_observations_travel_with_the_policy(tmp_path):
    """SB3#1256, stable-baselines#581: scores fell by thousands where a wrapper had been lost."""
    run = train("trpo", "Pendulum-v1", run_dir=tmp_path / "run", **QUICK)
    assert run.evaluation is not None
    assert evaluate_run(run.directory, episodes=3).returns == run.evaluation.returns
    state = torch.load(run.directory / "checkpoint.pt", weights_only=True)
    moments = state["agent"]["agent"]["features.normaliser.moments.count"]
    assert float(moments) == 400


def test_14_a_policy_that_turns_into_nan_is_told_and_taken_back(generator):
    """SB3#1593, tianshou#400: an infinite deviation, then NaN actions."""

    class Explosive(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            # Fine where it is, NaN one step further.
            scale = torch.where(self.mean == 0, 1.0, math.nan) * torch.ones(len(x), 1)
            return Independent(
                Normal(self.mean.expand(len(x), 1), scale, validate_args=False), 1,
                validate_args=False,
            )  # fmt: skip

    x, actions = torch.zeros(16, 1), torch.randn(16, 1, generator=generator)
    for algorithm in (TRPO, NPG, PPO, A2C):
        policy = Explosive()
        report = algorithm(policy).step(x, actions, actions.squeeze(1))
        assert report.status.name == "NONFINITE", algorithm
        assert float(policy.mean.detach()) == 0


def test_15_no_update_leaves_the_trust_region_however_large_the_learning_rate(policy, batch):
    """baselines#975: the KL jumped from 0.017 to 4.5 in one update, after success."""
    x, actions, advantages = batch
    ppo = PPO(policy, learning_rate=1.0, max_kl=0.02, epochs=3)
    for _ in range(5):
        old = policy(x)
        mean, scale = old.mean.detach().clone(), old.stddev.detach().clone()
        report = ppo.step(x, actions, advantages)
        frozen = Independent(Normal(mean, scale), 1)
        kl = torch.distributions.kl_divergence(frozen, policy(x)).mean()
        assert float(kl.detach()) <= 0.02 * (1 + 1e-9)
        assert report.kl == pytest.approx(float(kl.detach()), rel=1e-6, abs=1e-12)


def test_16_what_is_logged_is_the_tasks_own_reward(tmp_path):
    """baselines#559: the normalised reward was logged. CartPole pays 1 a step."""
    run = train("ppo", "CartPole-v1", run_dir=tmp_path / "run", normalise_rewards=True, **QUICK)
    finished = [row for row in rows(run.directory / "progress.csv") if row["episode_return"]]
    assert finished
    assert all(row["episode_return"] == row["episode_length"] for row in finished)
    assert run.evaluation is not None
    assert run.evaluation.returns == tuple(map(float, run.evaluation.lengths))


class Lopsided(gym.Env):
    """Bounds of [2, 10] and [−0.4, 0.4]; refuses anything outside, and NaN."""

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Box(np.array([2, -0.4], np.float32), np.array([10, 0.4], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.seen.append(np.array(action))
        return self.reset()[0], -float(action[0]), False, self.np_random.random() < 0.1, {}

    seen: ClassVar[list[Any]] = []


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "trpo", "ppo"])
def test_19_bounds_other_than_one_are_reached_and_never_left(algorithm, tmp_path):
    """SB3#1749, CleanRL#196: actions saturated, were NaN, or used a part of the range."""
    gym.register("test/Lopsided-v0", Lopsided) if "test/Lopsided-v0" not in gym.registry else None  # type: ignore[arg-type]
    Lopsided.seen.clear()
    warm = {"learning_starts": 200, "batch_size": 16} if algorithm in ("ddpg", "td3") else {}
    train(algorithm, "test/Lopsided-v0", run_dir=tmp_path / "run", **{**QUICK, **warm},
          checkpoints=0)  # fmt: skip
    taken = np.array(Lopsided.seen)
    assert np.isfinite(taken).all()
    width = taken.max(axis=0) - taken.min(axis=0)
    assert (width > 0.8 * np.array([8, 0.8])).all()


@pytest.mark.parametrize("algorithm", ["npg", "ppo", "acktr", "td3"])
def test_21_a_seed_determines_a_run(algorithm, tmp_path):
    """SB3#342, stable-baselines#145."""
    warm = {"learning_starts": 100, "batch_size": 16} if algorithm == "td3" else {}
    finals = [
        train(algorithm, "Pendulum-v1", run_dir=tmp_path / str(k), **{**QUICK, **warm}).evaluation
        for k in range(2)
    ]
    assert finals[0] == finals[1]


def test_acktr_is_a_preset_of_a2c(policy, batch):
    first, second = policy, Gaussian(torch.Generator().manual_seed(0)).double()
    second.load_state_dict(first.state_dict())
    A2C(first, optimizer="KFAC", learning_rate=1.0).step(*batch)
    assert ACKTRConfig().optimizer == "KFAC"
    A2C(second, optimizer="KFAC", learning_rate=ACKTRConfig().learning_rate).step(*batch)
    assert torch.equal(flatten(first.parameters()), flatten(second.parameters()))

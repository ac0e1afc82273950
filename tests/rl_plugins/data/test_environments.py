"""Vector environments by name: backends, masks from the info, refusals."""

import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rl_plugins import PPOConfig, UsageError
from rl_plugins.agents import PPOAgent
from rl_plugins.data.autoreset import Environments
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import Backend, make_environments
from rl_plugins.data.task import as_task
from rl_plugins.errors import ExperienceError


class Doors(gym.Env):
    """Observes a number k; of five actions only k and k + 2 are allowed. Episodes of 3 or 4 steps,
    whose last info has no mask: there is nothing left to choose."""

    action_space = spaces.Discrete(5)
    observation_space = spaces.Dict(
        {"k": spaces.Discrete(3), "more": spaces.Box(0, 1, (2,), np.float32)}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now, self.length = 0, int(self.np_random.integers(3, 5))
        return self.observe(), {"action_mask": self.mask()}

    def step(self, action):
        assert action in (self.k, self.k + 2), "a forbidden action"
        self.now += 1
        over = self.now == self.length
        observation = self.observe()
        return observation, 1.0, False, over, {} if over else {"action_mask": self.mask()}

    def observe(self):
        self.k = int(self.np_random.integers(3))
        return {"k": self.k, "more": np.zeros(2, np.float32)}

    def mask(self):
        return np.isin(np.arange(5), (self.k, self.k + 2))


class NeedsMore(gym.Env):
    def __init__(self):
        raise gym.error.DependencyNotInstalled("install the\nmissing package")


@pytest.fixture(autouse=True, scope="module")
def _tasks():
    gym.register("test/Doors-v0", entry_point=Doors)  # type: ignore[arg-type]
    gym.register("test/NeedsMore-v0", entry_point=NeedsMore)  # type: ignore[arg-type]


class Uniform:
    """Continuous actions in [−1, 1], whatever is observed."""

    memory: torch.Tensor | None = None

    def act(self, observations, generator):
        return 2 * torch.rand(len(observations), 1, generator=generator) - 1

    def to_environment(self, actions):
        return 2 * actions.numpy()  # Pendulum's torques

    def forget(self, starts):
        pass


def collect(task, count, backend, steps, *, seed=0):
    environments = make_environments(task, count, backend=backend, seed=seed)
    try:
        generator = torch.Generator().manual_seed(seed)
        collector = RolloutCollector(environments, Uniform(), seed=seed, generator=generator)
        return collector.collect(steps)
    finally:
        environments.close()


def test_processes_of_their_own_return_the_same_numbers():
    here, there = (collect("Pendulum-v1", 2, backend, 210) for backend in (
        Backend.SYNC, Backend.ASYNC,
    ))  # fmt: skip
    for name in ("observations", "actions", "rewards", "truncated", "starts", "valid",
                 "final_observations", "next_observations"):  # fmt: skip
        assert torch.equal(getattr(here, name), getattr(there, name)), name
    assert here.episode_returns == there.episode_returns
    assert int(here.truncated.sum()) == 2


def swung(observations, actions):
    """Pendulum's next observation, from its documentation (semi-implicit Euler)."""
    cosine, sine, speed = observations.double().unbind(-1)
    angle = torch.atan2(sine, cosine)
    torque = 2 * actions.double().squeeze(-1)
    speed = (speed + (15 * sine + 3 * torque) * 0.05).clamp(-8, 8)
    angle = angle + speed * 0.05
    return torch.stack([angle.cos(), angle.sin(), speed], dim=-1)


def test_envpool_is_stepped_rightly_where_it_is_installed():
    """Its resets take a step of their own; every other step obeys the equation of motion, the one
    before a reset up to the true last observation included."""
    pytest.importorskip("envpool")
    rollout = collect("Pendulum-v1", 3, Backend.ENVPOOL, 410)
    assert int(rollout.truncated.sum()) == 6
    assert int((~rollout.valid).sum()) == 6
    assert torch.equal(rollout.valid[1:], ~rollout.truncated[:-1])
    assert rollout.episode_lengths == [200] * 6
    following = torch.cat([rollout.observations[1:], rollout.next_observations[None]]).double()
    following[rollout.truncated] = rollout.final_observations.double()
    expected = swung(rollout.observations, rollout.actions)
    valid = rollout.valid
    assert torch.allclose(following[valid], expected[valid], atol=1e-4)
    returns = (rollout.rewards * valid).double()
    first = returns[:200].sum(dim=0)
    assert torch.allclose(torch.tensor(rollout.episode_returns[:3]).double(), first, rtol=1e-5)


def test_envpool_takes_the_seed_and_warns_of_none():
    """A later seed would be a warning, which is an error here."""
    pytest.importorskip("envpool")
    first, again, other = (
        collect("Pendulum-v1", 3, Backend.ENVPOOL, 20, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.observations, again.observations)
    assert not torch.equal(first.observations[0], other.observations[0])
    assert not torch.equal(first.observations[0, 0], first.observations[0, 1])


def test_a_task_that_envpool_does_not_have_is_a_usage_error():
    pytest.importorskip("envpool")
    with pytest.raises(UsageError, match="envpool has no task 'test/Doors-v0'; use backend sync"):
        make_environments("test/Doors-v0", 2, backend=Backend.ENVPOOL)


def test_without_envpool_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UsageError, match="pip install envpool"):
        make_environments("CartPole-v1", 2, backend=Backend.ENVPOOL)


@pytest.mark.parametrize("backend", [Backend.SYNC, Backend.ASYNC])
def test_the_mask_of_an_info_travels_with_the_observation_it_belongs_to(backend):
    """Over resets too, whose observation comes with the last step's info."""
    environments = make_environments("test/Doors-v0", 3, backend=backend)
    wrapped = Environments(environments)
    observations = wrapped.reset(5)
    ends = 0
    for _ in range(30):
        mask = observations["action_mask"]
        k = observations["observation"]["k"]
        assert mask.dtype == torch.int8
        assert mask.nonzero()[:, 1].view(3, 2).tolist() == torch.stack([k, k + 2], 1).tolist()
        step = wrapped.step(k.numpy())
        for last in step.final:
            assert last["action_mask"].tolist() == [1] * 5
            ends += 1
        observations = step.observations
    environments.close()
    assert ends > 15


def test_an_agent_that_explores_never_takes_what_the_info_forbids(generator):
    """The task asserts it."""
    environments = make_environments("test/Doors-v0", 4)
    ppo = PPOAgent.build(
        environments.single_observation_space, environments.single_action_space,
        PPOConfig(hidden_sizes=(8,)), generator,
    )  # fmt: skip
    behaviour = ppo.behaviour(4, explore=True)
    collector = RolloutCollector(environments, behaviour, seed=0, generator=generator)
    rollout = collector.collect(200)
    higher = rollout.actions == rollout.observations["observation"]["k"] + 2
    assert 0.4 < float(higher.float().mean()) < 0.6


@pytest.mark.parametrize("backend", [Backend.SYNC, Backend.ASYNC])
def test_no_step_is_spent_on_a_reset_where_there_is_a_choice(backend):
    environments = make_environments("test/Doors-v0", 1, backend=backend)
    assert environments.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    environments.close()


@pytest.mark.parametrize("backend", [Backend.SYNC, Backend.ASYNC])
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Pendulumm-v1", r"cannot make the task 'Pendulumm-v1'.*Did you mean"),
        ("Pendulum-v999", r"cannot make the task 'Pendulum-v999'"),
        ("Pendulum-v", r"cannot make the task 'Pendulum-v'"),
        ("", r"cannot make the task ''"),
        ("no_such_package:Task-v0", r"No module named 'no_such_package'"),
        ("test/NeedsMore-v0", r"install the missing package"),
    ],
)
def test_a_task_that_cannot_be_made_is_one_line(task, message, backend):
    with pytest.raises(UsageError, match=message) as error:
        make_environments(task, 1, backend=backend)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("backend", list(Backend))
def test_at_least_one_environment_is_asked_for(count, backend):
    with pytest.raises(UsageError, match=f"at least 1, got {count}"):
        make_environments("Pendulum-v1", count, backend=backend)


class Dead(gym.Env):
    """From its third step on its mask forbids everything; the episode ends there, or goes on."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, space, ends):
        self.action_space, self.ends = space, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {"action_mask": self.mask()}

    def step(self, action):
        self.t += 1
        ended = self.ends and self.t == 3
        return np.zeros(1, np.float32), 1.0, ended, False, {"action_mask": self.mask()}

    def mask(self):
        width = self.action_space.n if isinstance(self.action_space, spaces.Discrete) else 5
        mask = np.ones(width, np.int8)
        mask[: 2 if width == 5 else width] = self.t < 3
        return mask


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3])], ids=str)
def test_a_mask_without_a_choice_is_the_task_s_fault_unless_nothing_follows(space):
    for ends in (True, False):
        task = as_task(partial(Dead, space, ends))
        environments = Environments(make_environments(task, 2))
        environments.reset(0)
        action = np.zeros((2, *space.shape), int) + 1
        for _ in range(3):
            environments.step(action)
        if ends:
            environments.step(action)
        else:
            with pytest.raises(ExperienceError, match="forbids every action"):
                environments.step(action)

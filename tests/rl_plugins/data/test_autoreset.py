"""One script of episodes, played through every autoreset mode: the same experience comes out of it.

An observation says where it stands in the script, so that the true next observation of every step
is known without the code under test.
"""

import itertools
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import TransformReward

from rl_plugins import gae
from rl_plugins.data.autoreset import Environments, tensors
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.errors import ExperienceError

MODES = list(AutoresetMode)
DISCOUNT, DECAY = 0.9, 0.8
CONTINUES, TERMINATED, TRUNCATED, BOTH = range(4)


def plan(index, episode):
    """Length and end of an episode; the first ones are of one step, with each of the ends."""
    if episode < 3:
        return 1, (TERMINATED, TRUNCATED, BOTH)[(index + episode) % 3]
    random = np.random.default_rng([index, episode])
    return int(random.integers(1, 6)), int(random.integers(TERMINATED, BOTH + 1))


def script(index):
    """(episode, step, what the step ends in) of every step that one environment takes."""
    for episode in itertools.count():
        length, end = plan(index, episode)
        for step in range(length):
            yield episode, step, end if step == length - 1 else CONTINUES


def reward(index, episode, step, action):
    return 0.5 * index - episode + 0.25 * step + action


def choose(numbers):
    """Actions by the observation alone, so that a step that only resets changes none of them."""
    return (numbers[..., 0] + 2 * numbers[..., 1] + numbers[..., 2]).long() % 3


class Scripted(gym.Env):
    """Observes [index, episode, step, terminal], alone or among others."""

    action_space = spaces.Discrete(3)
    numbers_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def __init__(self, index, structure="box"):
        self.index, self.structure, self.episode = index, structure, -1
        level = spaces.Discrete(100, start=-1)
        picture = spaces.Box(0, 255, (2, 3), np.uint8)
        self.observation_space = {
            "box": self.numbers_space,
            "dict": spaces.Dict(
                {"z": self.numbers_space, "a": spaces.Dict({"level": level, "picture": picture})}
            ),
            "tuple": spaces.Tuple([level, spaces.Tuple([self.numbers_space]), picture]),
        }[structure]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.now = 0
        return self.observe(False), {}

    def step(self, action):
        length, end = plan(self.index, self.episode)
        assert self.now < length, "a step behind the end of an episode"
        paid = reward(self.index, self.episode, self.now, int(action))
        self.now += 1
        over = self.now == length
        terminated = over and end in (TERMINATED, BOTH)
        return self.observe(terminated), paid, terminated, over and end in (TRUNCATED, BOTH), {}

    def observe(self, terminal):
        numbers = np.array([self.index, self.episode, self.now, terminal], dtype=np.float64)
        level, picture = self.now, np.full((2, 3), self.now, dtype=np.uint8)
        return {
            "box": numbers,
            "dict": {"z": numbers, "a": {"level": level, "picture": picture}},
            "tuple": (level, (numbers,), picture),
        }[self.structure]


def numbers_of(observations):
    """(…, 4), after making sure that all parts of an observation belong together."""
    if isinstance(observations, torch.Tensor):
        return observations
    if isinstance(observations, dict):
        numbers = observations["z"]
        level, picture = observations["a"]["level"], observations["a"]["picture"]
    else:
        level, (numbers,), picture = observations
    assert picture.dtype == torch.uint8
    assert not level.is_floating_point()
    assert torch.equal(numbers[..., 2], level.to(numbers.dtype))
    assert bool((picture == level[..., None, None]).all())
    return numbers


class Reading:
    """Remembers how many actions it has chosen since it was last told to forget."""

    def __init__(self, count):
        self.memory: Any = torch.zeros(count, 1)

    def act(self, observations, generator):
        self.memory = self.memory + 1
        return choose(numbers_of(observations))

    def to_environment(self, actions):
        return actions.numpy()

    def forget(self, starts):
        self.memory = self.memory.masked_fill(starts[:, None], 0.0)


def value(observations, memory=None):
    """Different for every place in the script; NaN for what must never be looked at."""
    index, episode, step, terminal = numbers_of(observations).unbind(-1)
    return torch.where(terminal == 1, torch.nan, torch.sin(3 * index + 7 * episode) + step)


def value_at(index, episode, step):
    return float(value(torch.tensor([index, episode, step, 0.0])))


@pytest.fixture
def collect(generator):
    """A collector of ``count`` scripts; its environments are closed after the test."""
    opened = []

    def make(mode, count, *, structure="box", asynchronous=False, task=Scripted):
        makers = [partial(task, index, structure) for index in range(count)]
        vector: AsyncVectorEnv | SyncVectorEnv
        if asynchronous:
            vector = AsyncVectorEnv(makers, shared_memory=False, autoreset_mode=mode)
        else:
            vector = SyncVectorEnv(makers, autoreset_mode=mode)
        opened.append(vector)
        return RolloutCollector(vector, Reading(count), seed=0, generator=generator)

    yield make
    for vector in opened:
        vector.close()


def advantages_of(rollout):
    values = value(rollout.observations)
    advantages = gae(
        rollout.rewards, values, rollout.next_values(value, values),
        rollout.terminated, rollout.truncated, discount=DISCOUNT, decay=DECAY,
    )  # fmt: skip
    return advantages, advantages + values


def mixture(index, taken):
    """Σ_l (γλ)^l δ of every step, written out over the steps of one rollout: the sum stops at the
    end of an episode, the bootstrap at a termination only."""
    expected = []
    for first in range(len(taken)):
        total, weight = 0.0, 1.0
        for episode, step, end, paid in taken[first:]:
            following = 0.0
            if end in (CONTINUES, TRUNCATED):
                following = value_at(index, episode, step + 1)
            total += weight * (paid + DISCOUNT * following - value_at(index, episode, step))
            weight *= DISCOUNT * DECAY
            if end != CONTINUES:
                break
        expected.append(total)
    return torch.tensor(expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("count", "length", "asynchronous"),
    [(1, 1, False), (3, 1, False), (3, 2, False), (3, 13, False), (64, 7, False), (2, 5, True)],
)
def test_rollouts_are_the_script_and_advantages_bootstrap_from_what_each_step_led_to(
    mode, count, length, asynchronous, collect
):
    """Rollouts so short that episodes of all kinds end at the last step of one."""
    collector = collect(mode, count, asynchronous=asynchronous)
    stories = [script(index) for index in range(count)]
    returns = np.zeros(count)
    lengths = np.zeros(count, dtype=int)
    ends_at_the_last_step = set()
    for _ in range(4 if count == 64 else max(3, 60 // length)):
        rollout = collector.collect(length)
        advantages, targets = advantages_of(rollout)
        assert not (rollout.terminated & rollout.truncated).any()
        assert not (~rollout.valid & (rollout.terminated | rollout.truncated)).any()
        finished = []
        for index in range(count):
            rows = rollout.valid[:, index].nonzero().flatten().tolist()
            taken = []
            for t in rows:
                episode, step, end = next(stories[index])
                observed = numbers_of(rollout.observations)[t, index].tolist()
                assert observed == [index, episode, step, 0]
                action = int(choose(torch.tensor(observed)))
                paid = reward(index, episode, step, action)
                assert int(rollout.actions[t, index]) == action
                assert float(rollout.rewards[t, index]) == paid
                assert bool(rollout.starts[t, index]) == (step == 0)
                assert bool(rollout.terminated[t, index]) == (end in (TERMINATED, BOTH))
                assert bool(rollout.truncated[t, index]) == (end == TRUNCATED)
                assert float(rollout.memories[t, index]) == step
                taken.append((episode, step, end, paid))
                returns[index] += paid
                lengths[index] += 1
                if end != CONTINUES:
                    finished.append((t, index, returns[index], lengths[index]))
                    returns[index], lengths[index] = 0, 0
            if taken:
                expected = mixture(index, taken)
                assert torch.allclose(advantages[rows, index], expected, rtol=1e-5, atol=1e-5)
                now = value(rollout.observations)[rows, index]
                assert torch.equal(targets[rows, index], advantages[rows, index] + now)
                if rows[-1] == length - 1:
                    ends_at_the_last_step.add(taken[-1][2])
        finished.sort()
        assert rollout.episode_returns == [paid for _, _, paid, _ in finished]
        assert rollout.episode_lengths == [steps for _, _, _, steps in finished]
        lasts = numbers_of(rollout.observations)[rollout.truncated]
        lasts[:, 2] += 1
        assert torch.equal(numbers_of(rollout.final_observations), lasts)
        if rollout.final_memories is not None:
            assert torch.equal(rollout.final_memories[:, 0], lasts[:, 2])
        assert rollout.steps == int(rollout.valid.sum())
        if mode is not AutoresetMode.NEXT_STEP:
            assert rollout.valid.all()
    if length < 3 and count > 1:
        assert ends_at_the_last_step == {CONTINUES, TERMINATED, TRUNCATED, BOTH}


@pytest.mark.parametrize("structure", ["box", "dict", "tuple"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_all_modes_give_the_same_learning_data(structure, asynchronous, collect):
    """Bit for bit, over the episodes that all of them have finished."""
    count, collected = 2, []
    for mode in MODES:
        collector = collect(mode, count, structure=structure, asynchronous=asynchronous)
        rollout = collector.collect(60)
        advantages, targets = advantages_of(rollout)
        columns = []
        for index in range(count):
            valid = rollout.valid[:, index]
            data = (
                numbers_of(rollout.observations), rollout.actions, rollout.rewards,
                rollout.terminated, rollout.truncated, rollout.starts, rollout.memories,
                advantages, targets,
            )  # fmt: skip
            columns.append([leaf[valid, index] for leaf in data])
        collected.append(columns)
    for index in range(count):
        ended = [columns[index][3] | columns[index][4] for columns in collected]
        last = min(int(flags.nonzero().max()) for flags in ended) + 1
        assert int(ended[0][:last].sum()) > 10
        first, *others = ([leaf[:last] for leaf in columns[index]] for columns in collected)
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_new_episodes_may_begin_at_any_time(mode, collect):
    """Also where the next step would have been spent on a reset."""
    collector = collect(mode, 2)
    for length in (1, 2, 3, 4):
        cut = collector.collect(length)
        collector.restart(seed=length)
        rollout = collector.collect(1)
        numbers = numbers_of(rollout.observations)
        assert rollout.starts.all()
        assert rollout.valid.all()
        assert numbers[0, :, 2].tolist() == [0, 0]
        assert bool((numbers[0, :, 1] > numbers_of(cut.observations)[-1, :, 1]).all())
        assert rollout.memories.flatten().tolist() == [0, 0]
        # A return that was under way is not added to that of another episode.
        over = (rollout.terminated | rollout.truncated)[0]
        assert rollout.episode_lengths == [1] * int(over.sum())
        assert rollout.episode_returns == rollout.rewards[0, over].tolist()


class Poisoned(gym.Env):
    """Episodes of two steps, of three for number 0. In their fourth episode the environments 1 and
    3 return the poison where it was asked for."""

    observation_space = spaces.Dict(
        {"a": spaces.Discrete(2), "b": spaces.Box(-np.inf, np.inf, (2,), np.float32)}
    )
    action_space = spaces.Discrete(3)

    def __init__(self, index, place, poison):
        self.index, self.place, self.poison, self.episode = index, place, poison, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.now = 0
        return self.observe("first"), {}

    def step(self, action):
        self.now += 1
        over = self.now == (3 if self.index == 0 else 2)
        terminated = over and self.place == "terminal"
        paid = self.number("reward", 1.0)
        observation = self.observe(("terminal" if terminated else "final") if over else "middle")
        return observation, paid, terminated, over and not terminated, {}

    def observe(self, place):
        return {"a": 1, "b": np.array([0, self.number(place, 1.0)], dtype=np.float32)}

    def number(self, place, sound):
        poisoned = self.index in (1, 3) and self.episode == 3 and place == self.place
        return self.poison if poisoned else sound


class Still:
    memory: torch.Tensor | None = None

    def act(self, observations, generator):
        first = observations["b"] if isinstance(observations, dict) else observations
        return torch.zeros(len(first), dtype=torch.long)

    def to_environment(self, actions):
        return actions.numpy()

    def forget(self, starts):
        pass


def collect_still(makers, mode, generator):
    vector = SyncVectorEnv(makers, autoreset_mode=mode)
    return RolloutCollector(vector, Still(), seed=0, generator=generator)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", ["first", "middle", "reward", "final", "terminal"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_an_error_that_names_its_environments(
    mode, place, poison, generator
):
    makers = [partial(Poisoned, index, place, poison) for index in range(5)]
    collector = collect_still(makers, mode, generator)
    collector.collect(5)
    with pytest.raises(ExperienceError, match=r"^environment \[1, 3\] returned a NaN or an inf"):
        collector.collect(8)


def test_so_is_one_at_the_very_first_reset(generator):
    class Broken(Poisoned):
        def observe(self, place):
            return {"a": 1, "b": np.full(2, np.nan if self.index == 2 else 0.0, np.float32)}

    makers = [partial(Broken, index, "", 0.0) for index in range(3)]
    with pytest.raises(ExperienceError, match=r"^environment \[2\] returned"):
        collect_still(makers, AutoresetMode.SAME_STEP, generator)


@pytest.mark.parametrize("mode", MODES)
def test_numbers_whose_sum_overflows_are_numbers(mode, generator):
    """Some tasks say "no reading" by the largest float."""
    largest = float(np.finfo(np.float32).max)
    makers = [partial(Poisoned, index, "middle", largest) for index in range(4)]
    rollout = collect_still(makers, mode, generator).collect(12)
    assert int((rollout.observations["b"] == largest).sum()) == 2


class Sloppy(gym.Env):
    """Returns lists of integers where floats are promised, as vector environments let it."""

    observation_space = spaces.Box(-1, 9, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return [0, 7], {}

    def step(self, action):
        self.now += 1
        return [self.now, 7], 1, False, self.now == 3, {}


@pytest.mark.parametrize("mode", MODES)
def test_last_observations_come_in_the_type_of_all_others(mode, generator):
    rollout = collect_still([Sloppy, Sloppy], mode, generator).collect(5)
    assert rollout.final_observations.dtype == rollout.observations.dtype == torch.float32
    assert rollout.final_observations.tolist() == [[3, 7], [3, 7]]


@pytest.mark.parametrize("mode", MODES)
def test_what_a_wrapper_pays_for_a_reset_is_in_no_return(mode, generator):
    vector = TransformReward(SyncVectorEnv([Sloppy], autoreset_mode=mode), lambda paid: paid + 10)
    rollout = RolloutCollector(vector, Still(), seed=0, generator=generator).collect(9)
    assert set(rollout.episode_returns) == {33.0}
    assert set(rollout.episode_lengths) == {3}


def test_observations_are_not_the_buffers_of_the_vector_environment(generator):
    vector = SyncVectorEnv([Sloppy], copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    environments = Environments(vector)
    first = environments.reset(0)
    kept = environments.step(np.zeros(1, dtype=int)).observations
    environments.step(np.zeros(1, dtype=int))
    assert first.tolist() == [[0, 7]]
    assert kept.tolist() == [[1, 7]]


@pytest.mark.parametrize(("given", "stored"), [
    (np.float64, torch.float32), (np.float32, torch.float32), (np.float16, torch.float32),
    (np.uint8, torch.uint8), (np.int8, torch.int8), (np.int32, torch.int32),
    (np.uint16, torch.int64), (np.uint32, torch.int64), (bool, torch.bool),
])  # fmt: skip
def test_every_type_of_number_arrives_with_its_value(given, stored):
    array = np.array([[0, 1], [1, 1]]).astype(given)
    found = tensors({"a": array})["a"]
    assert found.dtype == stored
    assert np.array_equal(found.numpy().astype(given), array)


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": "SameStep"}])
def test_a_vector_environment_that_does_not_say_how_it_resets_is_refused(metadata):
    vector = SyncVectorEnv([Sloppy])
    vector.metadata = metadata
    with pytest.raises(ValueError, match=r"autoreset_mode .*the ends of episodes are a guess"):
        Environments(vector)

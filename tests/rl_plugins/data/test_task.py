"""Whatever names or makes an environment is a task, and each copy is one of its own."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from rl_plugins import UsageError
from rl_plugins.data.environments import make_environments, make_one
from rl_plugins.data.task import Task, as_task
from rl_plugins.data.task_check import check_task


class Walk(gym.Env):
    """Observes its place and its length; a step moves by 1."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-100, 100, (2,), np.float32)

    def __init__(self, length=3, render_mode=None):
        self.length, self.render_mode = length, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0
        return self._seen(), {}

    def step(self, action):
        self.x += 1
        return self._seen(), 1.0, self.x >= self.length, False, {}

    def _seen(self):
        return np.array([self.x, self.length], np.float32)


class Doubled(gym.ObservationWrapper):
    def observation(self, observation):
        return 2 * observation


class Shifted(gym.ObservationWrapper):
    def observation(self, observation):
        return observation + 1


def first_of(task, **options):
    vector = make_environments(as_task(task, **options), 2)
    observations, _ = vector.reset(seed=0)
    vector.close()
    return observations


@pytest.fixture(autouse=True, scope="module")
def _walk():
    gym.register("test/Walk-v0", Walk, max_episode_steps=7)  # type: ignore[arg-type]


SOURCES = {
    "name": lambda: "test/Walk-v0",
    "class": lambda: Walk,
    "function": lambda: partial(Walk, length=3),
    "environment": Walk,
    "wrapped environment": lambda: Doubled(Doubled(Walk())),
    "registered environment": lambda: gym.make("test/Walk-v0"),
    "spec": lambda: gym.spec("test/Walk-v0"),
    "task": lambda: Task("test/Walk-v0"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_makes_copies(kind):
    seen = first_of(SOURCES[kind]())
    factor = 4 if kind == "wrapped environment" else 1
    assert np.array_equal(seen, factor * np.array([[0, 3], [0, 3]]))


def test_copies_of_an_environment_are_its_own():
    mine = Walk()
    mine.reset(seed=0)
    mine.step(0)
    vector = make_environments(as_task(mine), 2)
    vector.reset(seed=0)
    vector.step(np.zeros(2, int))
    assert mine.x == 1
    vector.close()


def test_arguments_wrappers_and_frames_apply_in_their_order():
    kwargs = {"length": 5}
    assert np.array_equal(first_of(Walk, kwargs=kwargs)[0], [0, 5])
    wrapped = first_of(Walk, kwargs=kwargs, wrappers=(Doubled, Shifted))
    assert np.array_equal(wrapped[0], [1, 11])
    named = first_of("test/Walk-v0", wrappers=(f"{__name__}:Shifted", f"{__name__}:Doubled"))
    assert np.array_equal(named[0], [2, 8])
    assert first_of(Walk, frame_stack=4).shape == (2, 4, 2)


def test_a_vector_environment_is_used_as_it_is():
    vector = SyncVectorEnv([Walk] * 3)
    assert make_environments(as_task(vector), 8) is vector
    with pytest.raises(UsageError, match="apply gymnasium's vector wrappers"):
        as_task(vector, frame_stack=2)


def test_options_of_one_copy_reach_the_constructor():
    assert make_one(as_task(Walk), render_mode="rgb_array").unwrapped.render_mode == "rgb_array"


class Uncopied(Walk):
    def __deepcopy__(self, memo):
        raise TypeError("a socket")


class NoEnvironment:
    pass


WRONG = {
    "a list": (lambda: as_task([Walk]), "got list"),
    "no copy": (lambda: as_task(Uncopied()), r"cannot be copied \(a socket\); pass its class"),
    "arguments of an object": (lambda: as_task(Walk(), kwargs={"length": 2}), "pass the class"),
    "another class": (lambda: as_task(NoEnvironment).make(), "expected a gymnasium.Env"),
    "a wrong argument": (lambda: as_task(Walk, kwargs={"size": 2}).make(), "unexpected keyword"),
    "an unknown name": (lambda: as_task("Wolk-v0").make(), "--import module"),
    "a wrapper's module": (lambda: as_task(Walk, wrappers=("nowhere:W",)), "cannot import"),
    "a wrapper's class": (lambda: as_task(Walk, wrappers=(f"{__name__}:W",)), "cannot import"),
    "a wrapper's name": (lambda: as_task(Walk, wrappers=("Doubled",)), "expected module:Class"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_told(mistake):
    act, message = WRONG[mistake]
    with pytest.raises(UsageError, match=message):
        act()


def test_the_check_takes_one_step_and_finds_the_step_limit():
    steps = []

    class Counted(Walk):
        def step(self, action):
            steps.append(action)
            return super().step(action)

    gym.register("test/Counted-v0", Counted, max_episode_steps=7)  # type: ignore[arg-type]
    assert check_task(as_task("test/Counted-v0")).step_limit == 7
    assert len(steps) == 1
    assert check_task(as_task(Walk)).step_limit is None

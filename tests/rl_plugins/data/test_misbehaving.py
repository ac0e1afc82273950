"""Tasks that misbehave: the run ends with a sentence, and its last checkpoint stays sound."""

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_plugins import UsageError, load, train
from rl_plugins.errors import ExperienceError
from rl_plugins.runs.checkpoint import load_checkpoint

FLT_MAX = float(np.finfo(np.float32).max)
SETTINGS: dict[str, Any] = {
    "total_steps": 160, "environments": 2, "rollout_length": 10, "hidden_sizes": (4,),
    "checkpoints": 4, "evaluations": 1, "evaluation_episodes": 1, "evaluation_step_limit": 20,
}  # fmt: skip
ALGORITHMS: dict[str, dict[str, Any]] = {
    "trpo": SETTINGS,
    "td3": {**SETTINGS, "learning_starts": 20, "batch_size": 8, "buffer_size": 200},
}
# What the k-th step of an environment does instead of its own.
FIRST, EARLY, LATE = 1, 15, 45


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(first)
        self.lock = multiprocessing.Lock()


class SomethingElse(BaseException):
    pass


class Misbehaving(gym.Env):
    """Episodes of 7 steps; from the step ``after`` on, it does what it should not.

    Parameters
    ----------
    fault
        Its name.
    after
        The number of the step, over all episodes of this copy.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, fault="none", after=1, render_mode=None):
        self.fault, self.after, self.render_mode = fault, after, render_mode
        self.count = self.now = 0
        self.kept = np.zeros(2, np.float32)
        if fault == "constructor exit":
            sys.exit(0)
        if fault == "constructor raises":
            raise SomethingElse("made")
        if fault == "constructor dies" and multiprocessing.parent_process() is not None:
            os._exit(3)

    @property
    def due(self):
        return self.count >= self.after

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        if self.due:
            if self.fault in RESETS:
                return RESETS[self.fault](self)
            self.die("reset")
        return self.observe(), {}

    def step(self, action):
        self.count += 1
        self.now += 1
        given: Any = (self.observe(), float(-abs(action[0])), False, self.now == 7, {})
        if self.due:
            if self.fault in STEPS:
                return STEPS[self.fault](self, given)
            self.die("step")
        return given

    def observe(self):
        return np.array([self.now / 7, 1.0], np.float32)

    def die(self, where):
        """What a worker process may do; in the process of the tests nothing."""
        if multiprocessing.parent_process() is None:
            return
        if self.fault == f"{where} dies":
            os._exit(3)
        if self.fault == f"{where} exits":
            os._exit(0)
        if self.fault == f"{where} is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == f"{where} hangs":
            time.sleep(1_000)
        if self.fault == f"{where} hangs and ignores signals":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1_000)
        if self.fault == f"{where} raises what cannot be pickled":
            raise Unpicklable("one", "two")
        if self.fault == f"{where} leaves":
            sys.exit(0)

    def render(self):
        raise RuntimeError("no picture")

    def close(self):
        if self.fault == "close raises":
            raise RuntimeError("not closed")
        if self.fault == "close exits":
            sys.exit(0)


def raises(error):
    def misbehave(env, *given):
        raise error

    return misbehave


def leaves(code):
    def misbehave(env, *given):
        sys.exit(code)

    return misbehave


def gives(**changes):
    """The step's own result with parts of it replaced."""
    names = ("observation", "reward", "terminated", "truncated", "info")

    def misbehave(env, given):
        parts = dict(zip(names, given, strict=True))
        return tuple({**parts, **changes}.values())

    return misbehave


def begins_with(observation):
    return lambda env: (observation, {})


def reused(env, given):
    env.kept[:] = given[0]
    return (env.kept, *given[1:])


def spike(value):
    """A bad reward once, and good ones after it."""

    def misbehave(env, given):
        if env.count == env.after:
            return (given[0], value, *given[2:])
        return given

    return misbehave


class Odd:
    def __float__(self):
        raise ValueError("no number")

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")


OBSERVATIONS: dict[str, Any] = {
    "None": None,
    "NaN": np.full(2, math.nan, np.float32),
    "infinite": np.full(2, math.inf, np.float32),
    "FLT_MAX": np.full(2, FLT_MAX, np.float32),
    "float64 1e39": np.full(2, 1e39),
    "1e30": np.full(2, 1e30, np.float32),
    "denormal": np.full(2, 1e-45, np.float32),
    "short": np.zeros(1, np.float32),
    "long": np.zeros(3, np.float32),
    "square": np.zeros((2, 2), np.float32),
    "text": "observation",
    "texts": np.array(["a", "b"]),
    "objects": np.array([None, {}], dtype=object),
    "complex": np.full(2, 1j),
    "scalar": 1.0,
    "dict": {"a": 1},
    "ragged": [[1], [1, 2]],
    "huge int": [10**400, 1],
    "odd": Odd(),
    "tensor": torch.zeros(2),
}
REWARDS: dict[str, Any] = {
    "None": None, "NaN": math.nan, "infinite": -math.inf, "1e39": 1e39, "3e38": 3e38, "1e18": 1e18,
    "1e300": -1e300, "array": np.zeros(2), "one in an array": np.zeros(1), "text": "1",
    "odd": Odd(),
    "complex": 1j, "huge int": 10**400, "True": True, "list": [1.0], "tensor": torch.tensor(1.0),
}  # fmt: skip
FLAGS: dict[str, Any] = {
    "None": None, "array": np.zeros(2, bool), "text": "no", "1": 1, "odd": Odd(), "NaN": math.nan,
}  # fmt: skip
INFOS: dict[str, Any] = {
    "None": None, "list": [], "text": "info", "int keys": {1: 2}, "final_obs": {"final_obs": 3},
    "odd": {"a": Odd()}, "mask": {"action_mask": np.zeros(1, np.int8)}, "_key": {"_a": 1, "a": 2},
    "itself": {"a": {}},
}  # fmt: skip
INFOS["itself"]["a"]["a"] = INFOS["itself"]
STEPS: dict[str, Any] = {
    **{f"observation {name}": gives(observation=value) for name, value in OBSERVATIONS.items()},
    **{f"reward {name}": gives(reward=value) for name, value in REWARDS.items()},
    **{f"terminated {name}": gives(terminated=value) for name, value in FLAGS.items()},
    **{f"truncated {name}": gives(truncated=value) for name, value in FLAGS.items()},
    **{f"info {name}": gives(info=value) for name, value in INFOS.items()},
    "spike 1e39": spike(1e39),
    "spike 3e38": spike(3e38),
    "spike 1e15": spike(1e15),
    "reused": reused,
    "step None": lambda env, given: None,
    "step of four": lambda env, given: given[:4],
    "step raises": raises(RuntimeError("two\nlines")),
    "step raises StopIteration": raises(StopIteration()),
    "step raises KeyboardInterrupt's cousin": raises(SomethingElse("x")),
    "step raises MemoryError": raises(MemoryError()),
    "step raises UsageError": raises(UsageError("from the task")),
    "step raises what cannot be pickled": raises(Unpicklable(1, 2)),
    "step exits": leaves(1),
    "step exits with 0": leaves(0),
    "step asserts": raises(AssertionError()),
}
RESETS: dict[str, Any] = {
    **{f"reset {name}": begins_with(value) for name, value in OBSERVATIONS.items()},
    "reset raises": raises(ValueError("no reset")),
    "reset exits with 0": leaves(0),
    "reset None": lambda env: None,
    "reset of an observation alone": lambda env: env.observe(),
    "reset info None": lambda env: (env.observe(), None),
}
OTHERS = ["none", "close raises", "close exits", "constructor exit", "constructor raises"]
FAULTS = [*STEPS, *RESETS, *OTHERS]
COMBINATIONS = [
    (fault, after) for fault in FAULTS for after in (FIRST, EARLY, LATE) if fault not in OTHERS
] + [(fault, FIRST) for fault in OTHERS]


def finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    parts = value.values() if isinstance(value, dict) else value
    return not isinstance(value, (dict, list, tuple)) or all(map(finite, parts))


def assert_sound(path):
    """What lies in a directory, if the run has come to it."""
    if (path / "checkpoint.pt").exists():
        assert finite(load_checkpoint(path)["agent"])
        action = load(path).act(np.zeros(2, np.float32))
        assert np.isfinite(action).all()


def chosen(count):
    step = max(1, len(COMBINATIONS) // count)
    return [*COMBINATIONS[::step], *((fault, FIRST) for fault in OTHERS[1:])]


def assert_ends_well(algorithm, fault, after, path, **more):
    settings = {**ALGORITHMS[algorithm], **more}
    arguments = {"fault": fault, "after": after}
    message = ""
    try:
        train(algorithm, Misbehaving, run_dir=path, env_kwargs=arguments, **settings)
    except (UsageError, ExperienceError) as error:
        message = str(error)
    assert "\n" not in message
    if path.exists():
        outcome = json.loads((path / "outcome.json").read_text())["outcome"]
        assert outcome == ("failed" if message else "finished")
    assert_sound(path)
    return bool(message)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("fault", "after"), chosen(8))
def test_a_misbehaving_task_ends_in_a_sentence_or_trains(algorithm, fault, after, tmp_path):
    assert_ends_well(algorithm, fault, after, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("fault", "after"), COMBINATIONS)
def test_every_misbehaving_task_ends_in_a_sentence_or_trains(algorithm, fault, after, tmp_path):
    assert_ends_well(algorithm, fault, after, tmp_path / "run")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "fault", ["observation NaN", "reward 1e39", "spike 3e38", "step exits with 0"]
)
def test_a_late_fault_leaves_the_checkpoint_before_it(algorithm, fault, tmp_path):
    assert assert_ends_well(algorithm, fault, LATE, tmp_path / "run")
    assert 0 < load_checkpoint(tmp_path / "run")["steps"] <= 2 * LATE


WORKERS = [
    f"{where} {what}"
    for where in ("step", "reset")
    for what in ("dies", "hangs", "is killed", "raises what cannot be pickled", "exits", "leaves",
                 "hangs and ignores signals")
]  # fmt: skip
SLOW_WORKERS = [(fault, after) for fault in WORKERS for after in (FIRST, EARLY)]
QUICK_WORKERS = [("step is killed", EARLY), ("step hangs", FIRST), ("reset dies", EARLY),
                 ("step raises what cannot be pickled", FIRST)]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "after"),
    [
        *QUICK_WORKERS,
        *(pytest.param(*each, marks=pytest.mark.slow)
          for each in [*SLOW_WORKERS, ("constructor dies", FIRST)] if each not in QUICK_WORKERS),
    ],
)  # fmt: skip
def test_a_worker_that_dies_or_hangs_ends_the_run(fault, after, tmp_path):
    started = time.monotonic()
    # Only in the worker: in this process the task is checked, and its spaces are read.
    failed = assert_ends_well(
        "trpo", fault, after, tmp_path / "run", backend="async", worker_timeout=2.0
    )
    assert failed
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == []

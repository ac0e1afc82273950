"""Every kind of space learnt to the known optimum, by every algorithm that takes it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rl_plugins import train

STATES, LENGTH = 3, 8
SPACES = {
    "Discrete": spaces.Discrete(4, start=5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2], start=[1, -4]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(np.array([2.0, -30.0]), np.array([10.0, -10.0]), dtype=np.float64),
    "Unbounded": spaces.Box(-np.inf, np.inf, (1,), np.float32),
    "HalfBounded": spaces.Box(100, np.inf, (1,), np.float32),
    "Dict": spaces.Dict(move=spaces.Box(0, 1, (1,), np.float32), choose=spaces.Discrete(3)),
    "Tuple": spaces.Tuple([spaces.Discrete(2, start=-1), spaces.Box(-3, 3, (1,), np.float32)]),
}
MASKED = {"One": (5,), "Two": (3, 4)}
# A mean reward within this of the optimum is "learnt"; a random policy is thrice as far away.
SLACK = 0.15
RUN: dict[str, Any] = {"environments": 32, "hidden_sizes": (16,), "evaluations": 0, "discount": 0.0}
ON_POLICY: dict[str, dict[str, Any]] = {
    # Without a line search small steps are what keeps a policy that is almost sure from jumping.
    "npg": {"max_kl": 0.03, "rollout_length": 8},
    "trpo": {"max_kl": 0.1, "rollout_length": 8},
    "ppo": {"learning_rate": 2e-2, "batch_size": 128, "epochs": 4, "rollout_length": 8},
    "a2c": {"learning_rate": 1e-2, "rollout_length": 2, "critic": "adam", "critic_epochs": 1},
    "acktr": {"max_kl": 0.05, "rollout_length": 8},
}
OFF_POLICY: dict[str, Any] = {
    "learning_starts": 512, "updates_per_step": 0.25, "batch_size": 128, "rollout_length": 8,
    "actor_learning_rate": 5e-3, "critic_learning_rate": 5e-3, "noise_scale": 0.3,
}  # fmt: skip


def wanted(space, state):
    """What is right in a state: another thing in each, and never the middle of a range."""
    if isinstance(space, spaces.Discrete):
        return space.start + (state + 1) % space.n
    if isinstance(space, spaces.MultiDiscrete):
        return space.start + (state + np.arange(len(space.nvec))) % space.nvec
    if isinstance(space, spaces.MultiBinary):
        return np.arange(*space.shape) == state
    if isinstance(space, spaces.Dict):
        return {key: wanted(part, state) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(wanted(part, state) for part in space.spaces)
    if space.is_bounded():
        return space.low + (space.high - space.low) * (0.2 + 0.25 * state)
    return np.clip(0, space.low, space.high) + 0.5 * (state + 1)


def distance(space, action, right):
    """The mean over the components: 0 or 1 for a choice, half ranges for a number."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        keys: Any = space.spaces if isinstance(space, spaces.Dict) else range(len(space.spaces))
        return np.mean([distance(space[key], action[key], right[key]) for key in keys])
    if isinstance(space, spaces.Box):
        half_range = (space.high - space.low) / 2 if space.is_bounded() else 1.0
        return np.mean(np.abs(action - right) / half_range)
    return np.mean(action != right)


class Identity(gym.Env):
    """Shows numbers one after the other; pays −distance to the action that goes with each: at best
    0."""

    observation_space = spaces.Box(0, 1, (STATES,), np.float32)

    def __init__(self, kind):
        self.action_space = SPACES[kind]
        self.right = [wanted(self.action_space, state) for state in range(STATES)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        reward = -distance(self.action_space, action, self.right[self.state])
        self.steps += 1
        return self._show(), float(reward), self.steps == LENGTH, False, {}

    def _show(self):
        self.state = int(self.np_random.integers(STATES))
        return np.eye(STATES, dtype=np.float32)[self.state]


class Masked(gym.Env):
    """Choices of which a drawn part is valid, more pay more, an invalid one is an error.

    Pays the mean over the choices of (chosen − best valid): at best 0. Two steps; the last
    observation allows nothing. ``place`` says where the mask is.
    """

    def __init__(self, place, sizes):
        self.sizes, self.in_info = sizes, place == "info"
        count = int(np.sum(sizes))
        self.action_space = (
            spaces.Discrete(sizes[0], start=2) if len(sizes) == 1 else spaces.MultiDiscrete(sizes)
        )
        seen = spaces.Box(0, 1, (1,), np.float32)
        self.observation_space = (
            seen if self.in_info
            else spaces.Dict(seen=seen, action_mask=spaces.Box(0, 1, (count,), np.int8))
        )  # fmt: skip

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._draw()

    def step(self, action):
        chosen = np.atleast_1d(action - getattr(self.action_space, "start", 0))
        assert all(mask[i] for mask, i in zip(self.masks, chosen, strict=True)), (
            self.masks,
            action,
        )
        best = [np.flatnonzero(mask)[-1] for mask in self.masks]
        self.steps += 1
        observation, info = self._draw()
        return observation, float(np.mean(chosen - best)), self.steps == 2, False, info

    def _draw(self):
        self.masks = [self.np_random.random(size) < 0.5 for size in self.sizes]
        for mask, size in zip(self.masks, self.sizes, strict=True):
            mask[self.np_random.integers(size)] = True
        shown = np.concatenate(self.masks) & (self.steps < 2)
        seen, shown = np.ones(1, np.float32), shown.astype(np.int8)
        if self.in_info:
            return seen, {"action_mask": shown}
        return {"seen": seen, "action_mask": shown}, {}


class Picture(gym.Env):
    """A bright square in one of four corners of 12 × 12 pixels; pays 1 for saying which."""

    action_space = spaces.Discrete(4)

    def __init__(self, channels):
        self.channels = channels
        shape = {"first": (1, 12, 12), "last": (12, 12, 1), "none": (12, 12)}[channels]
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.corner = int(self.np_random.integers(4))
        return self._paint(), {}

    def step(self, action):
        return self._paint(), float(action == self.corner), True, False, {}

    def _paint(self):
        picture = self.np_random.integers(0, 30, (12, 12)).astype(np.uint8)
        row, column = 7 * (self.corner // 2), 7 * (self.corner % 2)
        picture[row : row + 4, column : column + 4] = 255
        return picture.reshape(self.observation_space.shape)


@pytest.fixture(autouse=True, scope="module")
def _tasks():
    for kind in SPACES:
        gym.register(f"test/Learn{kind}-v0", entry_point=Identity, kwargs={"kind": kind})  # type: ignore[arg-type]
    for place in ("info", "observation"):
        for name, sizes in MASKED.items():
            gym.register(
                f"test/Masked{name}-{place}-v0", entry_point=Masked,  # type: ignore[arg-type]
                kwargs={"place": place, "sizes": sizes},
            )  # fmt: skip
    for channels in ("first", "last", "none"):
        gym.register(
            f"test/Picture-{channels}-v0",
            entry_point=Picture,  # type: ignore[arg-type]
            kwargs={"channels": channels},
        )


@pytest.fixture(autouse=True)
def _no_curve(monkeypatch):
    # Drawing it takes as long as the learning.
    monkeypatch.setattr("rl_plugins.runs.loop.draw_curve", lambda *_: None, raising=False)


def random_return(task, episodes=50):
    environment = gym.make(task, disable_env_checker=True)
    environment.action_space.seed(0)
    total = 0.0
    for seed in range(episodes):
        environment.reset(seed=seed)
        for _ in range(LENGTH):
            total += float(environment.step(environment.action_space.sample())[1])
    return total / episodes / LENGTH


@pytest.mark.parametrize("kind", SPACES)
def test_a_random_policy_is_far_from_the_optimum(kind):
    assert random_return(f"test/Learn{kind}-v0") < -3 * SLACK


# TRPO and PPO stand for the others, which differ in the direction of a step alone.
@pytest.mark.parametrize(
    "algorithm",
    [
        "trpo",
        "ppo",
        pytest.param("a2c", marks=pytest.mark.slow),
        pytest.param("npg", marks=pytest.mark.slow),
        pytest.param("acktr", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Discrete", {}), ("MultiDiscrete", {}), ("MultiBinary", {}),
        ("Box", {"action_bounds": "clip"}), ("Box", {"action_bounds": "tanh"}), ("Unbounded", {}),
        ("Dict", {}), ("Tuple", {}),
    ],
    ids=lambda value: "".join(value.values()) if isinstance(value, dict) else value,
)  # fmt: skip
def test_every_action_space_is_learnt_on_policy(algorithm, kind, settings, tmp_path):
    run = train(
        algorithm, f"test/Learn{kind}-v0", run_dir=tmp_path / "run", total_steps=2560,
        **RUN, **ON_POLICY[algorithm], **settings,
    )  # fmt: skip
    assert run.evaluation is not None
    assert -SLACK <= run.evaluation.mean / LENGTH <= 0


def test_an_action_far_beyond_zero_with_one_bound_is_learnt(tmp_path):
    """Around 0 every draw would be clipped to the bound, 100, and nothing be learnt."""
    run = train(
        "trpo", "test/LearnHalfBounded-v0", run_dir=tmp_path / "run", total_steps=2560,
        **RUN, **ON_POLICY["trpo"],
    )  # fmt: skip
    assert run.evaluation is not None
    assert -SLACK <= run.evaluation.mean / LENGTH <= 0


@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_a_box_is_learnt_off_policy(algorithm, tmp_path):
    run = train(
        algorithm, "test/LearnBox-v0", run_dir=tmp_path / "run", total_steps=2048,
        **RUN, **OFF_POLICY,
    )  # fmt: skip
    assert run.evaluation is not None
    assert -SLACK <= run.evaluation.mean / LENGTH <= 0


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("trpo", {}), ("ppo", {}), ("trpo", {"memory_size": 8})],
    ids=["trpo", "ppo", "trpo with a memory"],
)
@pytest.mark.parametrize("place", ["info", "observation"])
@pytest.mark.parametrize("sizes", MASKED)
def test_no_invalid_action_is_ever_taken_and_the_best_valid_one_is_learnt(
    algorithm, settings, place, sizes, tmp_path
):
    # The task raises where an action is invalid, in training and in the evaluation.
    run = train(
        algorithm, f"test/Masked{sizes}-{place}-v0", run_dir=tmp_path / "run", total_steps=2560,
        **RUN, **ON_POLICY[algorithm], **settings,
    )  # fmt: skip
    assert run.evaluation is not None
    assert -SLACK <= run.evaluation.mean <= 0


@pytest.mark.parametrize("sizes", MASKED)
def test_valid_but_random_choices_are_far_from_the_optimum(sizes):
    environment = Masked("info", MASKED[sizes])
    draw = np.random.default_rng(0)
    returns = []
    for seed in range(200):
        environment.reset(seed=seed)
        chosen = [draw.choice(np.flatnonzero(mask)) for mask in environment.masks]
        offset = getattr(environment.action_space, "start", 0)
        action = (np.array(chosen) if len(chosen) > 1 else chosen[0]) + offset
        returns.append(2 * environment.step(action)[1])
    assert np.mean(returns) < -3 * SLACK


@pytest.mark.parametrize("algorithm", ["trpo", pytest.param("ppo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("channels", ["first", "last", "none"])
def test_what_an_image_shows_is_learnt(algorithm, channels, tmp_path):
    run = train(
        algorithm, f"test/Picture-{channels}-v0", run_dir=tmp_path / "run", total_steps=768,
        **RUN, **ON_POLICY[algorithm],
    )  # fmt: skip
    assert run.evaluation is not None
    assert run.evaluation.mean == 1

"""From a policy's actions to the task's: never outside a space, and in its own units inside."""

import inspect
import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate

from rl_plugins import UsageError
from rl_plugins.policies import Joint, sample
from rl_plugins.policies.spaces import (
    action_columns,
    action_head,
    action_map,
    bounded_dimensions,
)

INF = np.inf
# Gymnasium's first versions with the rest of this know one type of a Discrete.
CHOICES = inspect.signature(spaces.Discrete).parameters
BYTES: dict[str, Any] = {"dtype": np.uint8} if "dtype" in CHOICES else {}
SPACES: dict[str, Any] = {
    "discrete": spaces.Discrete(3, start=-4),
    "discrete of bytes": spaces.Discrete(3, start=253, **BYTES),
    "one choice": spaces.Discrete(1),
    "multidiscrete": spaces.MultiDiscrete([3, 1, 2], start=[5, 0, -1]),
    "multidiscrete of 32 bits": spaces.MultiDiscrete([3, 2], dtype=np.int32),
    "multidiscrete of two dimensions": spaces.MultiDiscrete(
        [[3, 2], [2, 4]],  # type: ignore[list-item]
        start=[[1, 2], [3, 4]],  # type: ignore[list-item]
    ),
    "multibinary": spaces.MultiBinary(3),
    "multibinary of two dimensions": spaces.MultiBinary((2, 3)),
    "box": spaces.Box(np.array([2.0, -1e5]), np.array([10.0, -1.0]), dtype=np.float64),
    "box of two dimensions": spaces.Box(-0.1, 0.7, (2, 2), np.float32),
    "box without dimensions": spaces.Box(0.1, 0.3, (), np.float32),
    "box of half precision": spaces.Box(-0.3, 3.3, (2,), np.float16),
    "unbounded": spaces.Box(-INF, INF, (2,), np.float32),
    "as good as unbounded": spaces.Box(-3e38, 3e38, (2,), np.float32),
    "mixed bounds": spaces.Box(
        np.array([-INF, 0, -INF, -7, 100, -INF]),
        np.array([INF, INF, 0, 5, INF, -9]),
        dtype=np.float64,
    ),
    "a single point": spaces.Box(3, 3, (1,), np.float32),
    "dict": spaces.Dict(
        b=spaces.Discrete(3, start=1), a=spaces.Box(0, 8, (2,), np.float32), c=spaces.MultiBinary(2)
    ),
    "tuple": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(-INF, INF, (), np.float64)]),
    "nested": spaces.Dict(
        z=spaces.Tuple([spaces.Discrete(2, start=7), spaces.Dict(x=spaces.MultiBinary((2, 1)))]),
        y=spaces.Box(2, 3, (1, 2), np.float32),
    ),
}


def extremes(space, count, generator):
    """Actions of the space's policy, drawn and pushed far out."""
    head = action_head(space, initial_log_std=2.0)
    outputs = 100 * torch.randn(count, head.outputs, generator=generator)
    outputs[0], outputs[-1] = 1e30, -1e30
    with torch.inference_mode():
        return sample(head(outputs), generator)


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")  # Gymnasium, of 0-d boxes
@pytest.mark.parametrize("bounds", ["clip", "tanh"])
@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("name", SPACES)
def test_every_action_lies_in_the_space_whatever_the_network_says(name, count, bounds, generator):
    space = SPACES[name]
    actions = action_map(space, bounds=bounds)(extremes(space, count, generator))
    together = batch_space(space, count)
    assert together.contains(actions)
    singles = list(iterate(together, actions))
    assert len(singles) == count
    for action in singles:
        assert space.contains(action), action


class Anything(gym.Env):
    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, name):
        self.action_space = SPACES[name]
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.taken.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")
@pytest.mark.parametrize("name", SPACES)
def test_gymnasiums_vector_environment_takes_every_action(name, generator):
    vector = gym.vector.SyncVectorEnv([lambda: Anything(name)] * 5)
    vector.reset()
    actions = action_map(SPACES[name])(extremes(SPACES[name], 5, generator))
    assert vector.action_space.contains(actions)
    vector.step(actions)
    assert all(SPACES[name].contains(env.taken[0]) for env in vector.envs)  # type: ignore[attr-defined]
    vector.close()


@pytest.mark.parametrize("name", [name for name in SPACES if "discrete" in name])
def test_every_choice_of_the_policy_is_that_of_the_task_from_start_on(name):
    space = SPACES[name]
    sizes = space.n if isinstance(space, spaces.Discrete) else space.nvec
    choices = torch.tensor(list(itertools.product(*map(range, np.ravel(sizes)))))
    actions = action_map(space)(choices.squeeze(1) if np.ndim(sizes) == 0 else choices)
    assert actions.shape == (len(choices), *space.shape)
    chosen = actions.astype(np.int64) - np.asarray(space.start).astype(np.int64)
    assert np.array_equal(chosen.reshape(len(choices), -1), choices.numpy())


def test_bits_keep_their_places():
    bits = torch.arange(64).unsqueeze(1) // 2 ** torch.arange(6) % 2
    actions = action_map(SPACES["multibinary of two dimensions"])(bits.float())
    assert actions.shape == (64, 2, 3)
    assert np.array_equal(actions.reshape(64, 6), bits.numpy())


@pytest.mark.parametrize("name", SPACES)
def test_no_environments_take_no_actions(name):
    space = SPACES[name]
    head = action_head(space, initial_log_std=0.0)
    with torch.no_grad():
        actions = action_map(space)(head(torch.zeros(0, head.outputs)).mode)
    for leaf, part in zip(leaves(actions), leaves(space), strict=True):
        assert leaf.shape == (0, *part.shape)


def leaves(structure):
    if isinstance(structure, (dict, spaces.Dict)):
        structure = tuple(structure.values())
    if isinstance(structure, (tuple, spaces.Tuple)):
        return list(itertools.chain(*map(leaves, structure)))
    return [structure]


def test_clip_is_linear_to_the_bounds_and_no_further():
    space = SPACES["box"]
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)
    actions = action_map(space, bounds="clip")(torch.stack([u, u], dim=1))
    unit = np.clip(u.numpy(), -1, 1)
    for column, (low, high) in enumerate(zip(space.low, space.high, strict=True)):
        expected = low + (unit + 1) / 2 * (high - low)
        assert np.allclose(actions[:, column], expected, rtol=1e-12)


def test_tanh_is_the_stretched_tanh_and_leaves_what_is_unbounded_alone():
    space = spaces.Box(np.array([2.0, -INF]), np.array([10.0, INF]), dtype=np.float64)
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)
    actions = action_map(space, bounds="tanh")(torch.stack([u, u], dim=1))
    assert np.allclose(actions[:, 0], 6 + 4 * np.tanh(u.numpy()), rtol=1e-12)
    assert np.array_equal(actions[:, 1], u.numpy())
    assert (np.diff(actions[:, 0]) > 0).all()


@pytest.mark.parametrize("bounds", ["clip", "tanh"])
def test_an_action_with_one_bound_starts_from_zero_or_from_the_bound_nearest_to_it(bounds):
    """A unit is a unit there; at 0 it would take 100 deviations to leave the bound of 100."""
    space = SPACES["mixed bounds"]
    actions = action_map(space, bounds=bounds)(torch.tensor([[0.0] * 6, [0.5] * 6, [-0.5] * 6]))
    middle, up, down = actions
    assert middle.tolist() == [0, 0, 0, -1, 100, -9]
    free = [0, 1, 2, 4, 5]
    assert (up - middle)[free].tolist() == [0.5, 0.5, 0, 0.5, 0]
    assert (middle - down)[free].tolist() == [0.5, 0, 0.5, 0, 0.5]


@pytest.mark.parametrize("name", ["dict", "tuple", "nested"])
def test_components_are_read_in_the_order_of_the_space_by_head_and_map(name, generator):
    """Each component of the joint action is that of its own head and map, columns and all."""
    space = SPACES[name]
    head = action_head(space, initial_log_std=0.0)
    outputs = torch.randn(6, head.outputs, generator=generator)
    pi = head(outputs)
    assert isinstance(pi, Joint)
    draws = sample(pi, generator).detach()
    assert draws.shape[1] == action_columns(space)
    whole = action_map(space)(draws)
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else range(len(space.spaces))
    parts = torch.split(draws, [action_columns(space[key]) for key in keys], dim=1)
    heads = [action_head(space[key], initial_log_std=0.0) for key in keys]
    pieces = torch.split(outputs, [part.outputs for part in heads], dim=1)
    rebuilt = Joint([part(piece) for part, piece in zip(heads, pieces, strict=True)])
    assert torch.allclose(rebuilt.log_prob(draws), pi.log_prob(draws), rtol=1e-6)
    for key, part in zip(keys, parts, strict=True):
        alone = leaves(action_map(space[key])(part))
        for found, expected in zip(leaves(whole[key]), alone, strict=True):
            assert np.array_equal(found, expected)


def test_a_dict_keeps_its_names_and_a_tuple_its_places(generator):
    for name, kind in {"dict": dict, "tuple": tuple, "nested": dict}.items():
        actions = action_map(SPACES[name])(extremes(SPACES[name], 3, generator))
        assert type(actions) is kind
    assert list(actions) == list(SPACES["nested"].spaces)
    assert type(actions["z"]) is tuple
    assert type(actions["z"][1]) is dict


def test_a_new_policy_explores_a_good_part_of_every_range(generator):
    """Noise is in half ranges: the same part of [2, 10] as of [−100000, −1]."""
    space = SPACES["box"]
    head = action_head(space, initial_log_std=-0.5)
    with torch.inference_mode():
        actions = action_map(space)(sample(head(torch.zeros(4_000, 2)), generator))
    deviation = actions.std(axis=0) / (space.high - space.low)
    assert np.allclose(deviation, deviation[0], rtol=0.05)
    assert 0.2 < deviation[0] < 0.3


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), r"actions of type Text.* are not supported, only Discrete"),
        (spaces.Box(0, 9, (2,), np.int64), "Box of floats"),
        (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.Text(3)])), r"Text\(.*\) at a\.1"),
        (spaces.Tuple([spaces.Dict(b=spaces.Box(0, 9, (2,), np.uint8))]), r"uint8\) at 0\.b"),
        (spaces.Sequence(spaces.Discrete(2)), "actions of type Sequence"),
        (spaces.Dict({}), r"action Dict\(\) has no components"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([])), "at b has no components"),
    ],
)
def test_what_cannot_be_acted_in_is_a_usage_error_that_names_the_place(space, message):
    with pytest.raises(UsageError, match=message):
        action_head(space, initial_log_std=0.0)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(2), spaces.Box(0, 9, (2,), np.int64), SPACES["unbounded"],
        SPACES["as good as unbounded"], SPACES["mixed bounds"], SPACES["dict"],
    ],
    ids=str,
)  # fmt: skip
def test_a_deterministic_policy_asks_for_a_box_with_bounds_and_nothing_else(space):
    with pytest.raises(UsageError, match=r"need an action space with bounds, a Box of floats, got"):
        bounded_dimensions(space)


def test_a_box_with_bounds_has_as_many_dimensions_as_it_says():
    assert bounded_dimensions(SPACES["box"]) == 2
    assert bounded_dimensions(SPACES["box of two dimensions"]) == 4
    assert bounded_dimensions(SPACES["box without dimensions"]) == 1

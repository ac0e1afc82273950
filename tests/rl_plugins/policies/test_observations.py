"""Every observation space -> features, against encodings written out by hand."""

import inspect
from itertools import chain
from typing import Any

import numpy as np
import optree
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from torch import nn

from rl_plugins import UsageError
from rl_plugins.data.autoreset import tensors
from rl_plugins.policies import Perception, cnn, feature_network
from rl_plugins.policies.spaces import observation_features

# Gymnasium's first versions with the rest of this know one type of a Discrete.
CHOICES = inspect.signature(spaces.Discrete).parameters
BYTES: dict[str, Any] = {"dtype": np.uint8} if "dtype" in CHOICES else {}
NUMBERS = spaces.Box(-1, 1, (2, 2), np.float64)
SPACES: dict[str, Any] = {
    "a number": spaces.Box(-1, 1, (), np.float32),
    "numbers": NUMBERS,
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "integers": spaces.Box(-9, 9, (3,), np.int64),
    "discrete": spaces.Discrete(4, start=-2),
    "discrete of bytes": spaces.Discrete(4, start=3, **BYTES),
    "multidiscrete": spaces.MultiDiscrete([3, 2], start=[5, -1]),
    "multidiscrete of two dimensions": spaces.MultiDiscrete([[3, 2], [1, 4]]),  # type: ignore[list-item]
    "multidiscrete of unsigned": spaces.MultiDiscrete([3, 2], start=[5, 1], dtype=np.uint16),
    "multibinary": spaces.MultiBinary(3),
    "multibinary of two dimensions": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict(b=spaces.Discrete(3), a=NUMBERS),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), NUMBERS, spaces.Discrete(2)]),
    "nested": spaces.Dict(
        {
            "x": spaces.Tuple([spaces.Discrete(3), spaces.Dict(deep=NUMBERS)]),
            "y": spaces.MultiDiscrete([2, 2]),
            "z": spaces.Box(0, 1, (1,), np.float32),
        }
    ),
}


def by_hand(space: Any, observation):
    """(numbers, codes) of one observation."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        keys: Any = space.spaces if isinstance(space, spaces.Dict) else range(len(space.spaces))
        parts = [by_hand(space.spaces[key], observation[key]) for key in keys]
        return [list(chain(*side)) for side in zip(*parts, strict=True)]
    if isinstance(space, spaces.Box):
        return [np.ravel(observation).tolist(), []]
    if isinstance(space, spaces.MultiBinary):
        return [[], np.ravel(observation).tolist()]
    sizes = [space.n] if isinstance(space, spaces.Discrete) else space.nvec.flatten().tolist()
    starts, values = (np.ravel(x).tolist() for x in (space.start, observation))
    codes = []
    for size, start, value in zip(sizes, starts, values, strict=True):
        codes += [float(start + k == value) for k in range(size)]
    return [[], codes]


def draw(space, count):
    """Observations as a vector environment hands them out, and one by one."""
    space.seed(0)
    single = [space.sample() for _ in range(count)]
    out: Any = create_empty_array(space, count)
    batched = concatenate(space, single, out)
    assert batch_space(space, count).contains(batched)
    return single, tensors(batched)


@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("name", SPACES)
def test_features_are_the_numbers_then_the_codes(name, count):
    space = SPACES[name]
    single, batched = draw(space, count)
    features = observation_features(space, normalise=False)
    found = features(batched)
    expected = torch.tensor([list(chain(*by_hand(space, one))) for one in single])
    assert found.dtype == torch.float32
    assert found.shape == (count, features.width)
    assert torch.allclose(found, expected.float(), rtol=1e-6)


@pytest.mark.parametrize("name", SPACES)
def test_no_observation_has_features_of_no_rows(name):
    _, batched = draw(SPACES[name], 3)
    features = observation_features(SPACES[name], normalise=True)
    features.update(batched)
    nothing = optree.tree_map(lambda leaf: leaf[:0], batched)
    features.update(nothing)
    assert features(nothing).shape == (0, features.width)


def test_every_category_is_another_unit_vector():
    features = observation_features(spaces.Discrete(4, start=-2), normalise=True)
    assert torch.equal(features(torch.tensor([-2, -1, 0, 1])), torch.eye(4))


@pytest.mark.parametrize("name", SPACES)
def test_only_numbers_are_standardised_and_come_first(name):
    space = SPACES[name]
    single, batched = draw(space, 50)
    plain = observation_features(space, normalise=False)(batched)
    features = observation_features(space, normalise=True)
    features.update(batched)
    found = features(batched)
    count = features.numbers
    assert count == len(by_hand(space, single[0])[0])
    assert torch.equal(found[:, count:], plain[:, count:])
    assert (features.normaliser is None) is (count == 0)
    if count:
        numbers = plain[:, :count].double()
        expected = (numbers - numbers.mean(0)) / numbers.std(0, correction=0)
        assert torch.allclose(found[:, :count].double(), expected, atol=1e-4)


def test_observations_may_lie_in_any_memory_layout(generator):
    features = observation_features(spaces.Box(-1, 1, (2, 3)), normalise=False)
    x = torch.randn(3, 2, 5, generator=generator).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert torch.equal(features(x), x.contiguous().view(5, 6))


# Shape of the space -> (C, H, W), and the axis of the channels in one observation.
IMAGES = {
    (84, 84, 3): ((3, 84, 84), 2),
    (3, 84, 84): ((3, 84, 84), 0),
    (4, 40, 60): ((4, 40, 60), 0),
    (40, 60, 1): ((1, 40, 60), 2),
    (1, 8, 12): ((1, 8, 12), 0),
    (12, 8): ((1, 12, 8), None),
    (210, 160): ((1, 210, 160), None),
    (9, 9, 9): ((9, 9, 9), 2),
}


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_images_are_found_and_turned_to_channels_first_and_stay_bytes(shape):
    (channels, height, width), axis = IMAGES[shape]
    space = spaces.Box(0, 255, shape, np.uint8)
    single, batched = draw(space, 2)
    features = observation_features(space, normalise=True)
    assert features.images == {"image0": (channels, height, width)}
    assert features.normaliser is None
    found = features(batched)
    assert found["vector"].shape == (2, 0)
    assert found["image0"].dtype == torch.uint8
    expected = [one[None] if axis is None else np.moveaxis(one, axis, 0) for one in single]
    assert np.array_equal(found["image0"].numpy(), np.stack(expected))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (7, 7, 3), np.uint8),  # a board
        spaces.Box(0, 255, (128,), np.uint8),  # registers
        spaces.Box(0, 12, (8, 8), np.uint8),  # pieces on a board: a 255th of a code is nothing
        spaces.Box(0, 1, (10, 10, 4), np.uint8),
        spaces.Box(0, 1, (16, 16), np.float32),
        spaces.Box(0, 255, (2, 2, 9, 9, 3), np.uint8),
    ],
    ids=str,
)
def test_what_is_no_image_is_numbers(space):
    features = observation_features(space, normalise=True)
    assert features.images == {}
    assert features.numbers == np.prod(space.shape)
    _, batched = draw(space, 3)
    assert torch.equal(features(batched), batched.float().flatten(1).clamp(-10, 10))


def test_images_stand_beside_the_vector_of_everything_else():
    picture = spaces.Box(0, 255, (12, 12, 1), np.uint8)
    space = spaces.Dict(eye=picture, other=spaces.Tuple([picture]), choice=spaces.Discrete(3),
                        speed=spaces.Box(-1, 1, (2,), np.float32))  # fmt: skip
    single, batched = draw(space, 4)
    features = observation_features(space, normalise=False)
    found = features(batched)
    assert set(found) == {"vector", "image0", "image1"}
    codes = [np.eye(3)[one["choice"]] for one in single]
    expected = np.concatenate([np.stack([one["speed"] for one in single]), codes], axis=1)
    assert np.allclose(found["vector"].numpy(), expected)
    for name, pick in {"image0": lambda o: o["eye"], "image1": lambda o: o["other"][0]}.items():
        images = np.stack([pick(one) for one in single])
        assert np.array_equal(found[name].movedim(1, -1).numpy(), images)


@pytest.mark.parametrize("size", [*range(8, 40), 64, 84, 96])
def test_a_cnn_has_as_many_features_as_it_says_whatever_the_size(size, generator):
    for shape in {(1, size, size), (3, 8, size), (2, size, 11)}:
        network: Any = cnn(shape, generator)
        x = torch.rand(2, *shape, generator=generator)
        features = network(x)
        assert features.shape == (2, network[-1].features)
        assert network[-1].features >= 1
        assert torch.isfinite(features).all()
        assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize("size", [35, 36, 84])
def test_large_kernels_begin_where_they_fit(size, generator):
    layers = [m for m in cnn((1, size, size), generator) if isinstance(m, nn.Conv2d)]
    found = [(layer.kernel_size[0], layer.stride[0]) for layer in layers]
    assert found == ([(8, 4), (4, 2), (3, 1)] if size >= 36 else [(3, 2)] * 3)


def test_bytes_are_read_as_fractions_of_255_and_floats_as_they_are(generator):
    network = feature_network(
        0, {"image0": (1, 12, 12)}, (8,), 2,
        output_gain=1.0, generator=generator, activation=nn.Tanh,
    )  # fmt: skip
    assert isinstance(network, Perception)
    image = torch.randint(256, (3, 1, 12, 12), generator=generator, dtype=torch.uint8)
    vector = torch.empty(3, 0)
    read = network({"vector": vector, "image0": image})
    assert torch.equal(read, network({"vector": vector, "image0": image.float() / 255}))
    assert not torch.allclose(read, network({"vector": vector, "image0": image.float()}))


def test_perception_reads_every_image_and_the_vector(generator):
    images = {"image0": (1, 12, 12), "image1": (3, 9, 14)}
    network = feature_network(
        2, images, (8,), 2, output_gain=1.0, generator=generator, activation=nn.Tanh
    )
    inputs = {name: torch.rand(4, *shape, generator=generator) for name, shape in images.items()}
    inputs["vector"] = torch.randn(4, 2, generator=generator)
    for value in inputs.values():
        value.requires_grad_()
    gradients = torch.autograd.grad(network(inputs).sum(), list(inputs.values()))
    assert all(gradient.flatten(1).any(dim=1).all() for gradient in gradients)


MASKED: dict[str, Any] = {
    "bits": spaces.MultiBinary(3),
    "numbers": spaces.Box(0, 1, (3,), np.float64),
    "bytes in two dimensions": spaces.Box(0, 1, (3, 1), np.int8),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_says_what_is_valid_and_is_no_feature(name):
    space = spaces.Dict(action_mask=MASKED[name], speed=spaces.Box(-1, 1, (2,), np.float32))
    features = observation_features(space, normalise=True, choices=3)
    assert features.width == 2
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    observations = {
        "action_mask": tensors(
            mask.numpy().astype(MASKED[name].dtype).reshape(2, *MASKED[name].shape)
        ),
        "speed": torch.ones(2, 2),
    }
    found = features.mask(observations)
    assert found is not None
    assert torch.equal(found, mask.bool())
    assert torch.equal(features(observations), torch.ones(2, 2))


def test_only_the_outermost_mask_is_one():
    inner = spaces.Dict(action_mask=spaces.MultiBinary(3))
    features = observation_features(spaces.Dict(inner=inner), normalise=True, choices=3)
    observations = {"inner": {"action_mask": torch.ones(2, 3, dtype=torch.int8)}}
    assert features.mask(observations) is None
    assert features.width == 3


@pytest.mark.parametrize(
    ("space", "choices", "message"),
    [
        (spaces.Text(3), 0, "observations of type Text are not supported"),
        (spaces.Dict(a=spaces.Tuple([NUMBERS, spaces.Text(3)])), 0, r"type Text at a\.1 are not"),
        (spaces.Tuple([spaces.Dict(b=spaces.Sequence(NUMBERS))]), 0, r"Sequence at 0\.b are not"),
        (spaces.Graph(NUMBERS, None), 0, "type Graph are not"),
        (spaces.OneOf([NUMBERS, NUMBERS]), 0, "type OneOf are not"),
        (spaces.Dict({}), 0, "have no entries"),
        (spaces.Box(-1, 1, (0,)), 0, "have no entries"),
        (spaces.Dict(action_mask=spaces.MultiBinary(3)), 3, "have no entries"),
        (spaces.Dict(action_mask=spaces.MultiBinary(2), a=NUMBERS), 3, "'action_mask' is Multi.*3"),
        (spaces.Dict(action_mask=spaces.Discrete(3), a=NUMBERS), 3, "'action_mask' is Discrete"),
        (spaces.Dict(action_mask=spaces.MultiBinary(2), a=NUMBERS), 0, "'action_mask' is Multi"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_a_usage_error_that_names_it(space, choices, message):
    with pytest.raises(UsageError, match=message):
        observation_features(space, normalise=True, choices=choices)

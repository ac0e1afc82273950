import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rl_plugins.policies import ObservationNormaliser, RewardNormaliser, RunningMoments


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.floats(-1e6, 1e6),
    st.integers(0, 999),
)
def test_batches_merge_to_the_moments_of_everything_seen(sizes, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = [offset + torch.randn(size, 3, generator=generator).double() for size in sizes]
    moments = RunningMoments((3,))
    for batch in batches:
        moments.update(batch)
    everything = torch.cat(batches).numpy()
    assert float(moments.count) == len(everything)
    if len(everything):
        assert np.allclose(moments.mean, everything.mean(axis=0), rtol=1e-12)
        assert np.allclose(moments.variance, everything.var(axis=0), rtol=1e-5, atol=1e-9)


def test_starts_as_the_identity_and_then_standardises():
    normaliser = ObservationNormaliser((2,))
    x = torch.tensor([[1.0, 200.0], [3.0, 600.0]])
    assert torch.equal(normaliser(x).clamp(max=10), x.clamp(max=10))
    normaliser.update(x)
    assert torch.allclose(normaliser(x), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_forward_never_updates():
    normaliser = ObservationNormaliser((2,))
    normaliser.update(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in normaliser.state_dict().items()}
    normaliser(torch.ones(9, 2))
    assert all(torch.equal(before[name], value) for name, value in normaliser.state_dict().items())


def test_a_constant_component_is_centred_and_not_blown_up():
    normaliser = ObservationNormaliser((1,))
    normaliser.update(torch.full((50, 1), 0.1))
    assert torch.allclose(normaliser(torch.tensor([[0.1], [0.2]])), torch.tensor([[0.0], [0.1]]))


def test_outliers_are_clipped():
    normaliser = ObservationNormaliser((1,))
    normaliser.update(torch.tensor([[-1.0], [1.0]]))
    assert normaliser(torch.tensor([[1e9], [-1e9]])).flatten().tolist() == [10.0, -10.0]


def test_the_statistics_travel_in_the_state_dict():
    first, second = ObservationNormaliser((2,)), ObservationNormaliser((2,))
    first.update(torch.tensor([[1.0, 2.0], [5.0, 8.0]]))
    second.load_state_dict(first.state_dict())
    x = torch.ones(1, 2)
    assert torch.equal(first(x), second(x))
    for normaliser in (first, second):
        normaliser.update(3 * x)
    assert torch.equal(first(x), second(x))


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(generator):
    """By hand, over two rollouts: episodes begin anew, resets are no samples."""
    normaliser = RewardNormaliser(discount=0.5)
    rewards = torch.tensor([[1.0], [2.0], [0.0], [4.0]])
    starts = torch.tensor([[True], [False], [False], [True]])
    valid = torch.tensor([[True], [True], [False], [True]])
    normaliser.update(rewards, starts, valid)
    normaliser.update(rewards[:1], torch.tensor([[False]]), torch.tensor([[True]]))
    returns = torch.tensor([1.0, 2.5, 4.0, 3.0])  # the last: 0.5 · 4 + 1
    assert torch.allclose(normaliser.scale, returns.std(correction=0))
    assert torch.allclose(normaliser(returns), returns / returns.std(correction=0))
    assert float(normaliser(torch.tensor(1e6))) == 10.0


@pytest.mark.parametrize("value", [3e38, 1e30, 1e19])
def test_numbers_near_the_end_of_float32_leave_the_layers_finite(value, generator):
    """As of a lidar that means "nothing seen" by the largest number."""
    normaliser = ObservationNormaliser((2,))
    layer = torch.nn.utils.skip_init(nn.Linear, 2, 3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    readers = [(layer.weight.detach(), layer.bias.detach())]
    x = torch.randn(50, 2, generator=generator)
    normaliser.update(x)
    far = x.clone()
    far[::2, 0] = value
    for batch in (far, x, far):
        normaliser.update(batch, readers)
    assert all(bool(torch.isfinite(p).all()) for p in layer.parameters())
    assert bool(torch.isfinite(layer(normaliser(far))).all())

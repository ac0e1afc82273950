"""Generalised advantage estimation against its definitions (theory, lines 3 and 4)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_plugins import gae

PROBABILITIES = st.floats(0, 1)


def experience(seed, T=9, N=3, ends=0.3):
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(T, N, generator=generator, dtype=torch.float64)

    def coin():
        return torch.rand(T, N, generator=generator) < ends

    terminated, truncated = coin(), coin()
    return normal(), normal(), normal(), terminated, truncated & ~terminated


def errors(rewards, values, next_values, terminated, discount):
    return rewards + discount * torch.where(terminated, 0.0, next_values) - values


@given(st.integers(0, 999), PROBABILITIES, PROBABILITIES)
def test_equals_the_sum_of_discounted_errors_up_to_the_end_of_the_episode(seed, discount, decay):
    rewards, values, next_values, terminated, truncated = data = experience(seed)
    delta = errors(rewards, values, next_values, terminated, discount)
    advantages = gae(*data, discount=discount, decay=decay)
    T, N = rewards.shape
    for n in range(N):
        for t in range(T):
            total, weight = 0.0, 1.0
            for k in range(t, T):
                total += weight * float(delta[k, n])
                if terminated[k, n] or truncated[k, n]:
                    break
                weight *= discount * decay
            assert abs(total - float(advantages[t, n])) < 1e-10


@given(st.integers(0, 999), PROBABILITIES, st.integers(1, 9))
def test_k_errors_sum_up_to_k_rewards_and_a_bootstrap_less_the_value(seed, discount, k):
    """A^(k) = Σ_{l<k} γ^l δ_{t+l}, which is λ = 1 on a rollout of k steps."""
    data = rewards, values, next_values, terminated, _ = experience(seed, ends=0)
    next_values[:-1] = values[1:]
    delta = errors(rewards, values, next_values, terminated, discount)
    powers = discount ** torch.arange(k).double()[:, None]
    estimate = gae(*(part[:k] for part in data), discount=discount, decay=1.0)[0]
    by_rewards = (powers * rewards[:k]).sum(dim=0) + discount**k * next_values[k - 1] - values[0]
    assert torch.allclose((powers * delta[:k]).sum(dim=0), estimate, rtol=1e-12, atol=1e-13)
    assert torch.allclose(by_rewards, estimate, rtol=1e-12, atol=1e-13)


@given(st.integers(0, 999), PROBABILITIES, st.floats(0, 0.9))
def test_equals_the_mixture_of_k_step_estimators(seed, discount, decay):
    """A^GAE = (1 − λ) Σ λ^(k−1) A^(k), where k-step estimators past the end repeat the last one."""
    T = 8
    rewards, values, next_values, *_ = data = experience(seed, T=T, N=1, ends=0)
    next_values[:-1] = values[1:]
    advantage = gae(*data, discount=discount, decay=decay)[0, 0]

    def k_step(k):
        steps = sum(discount**i * rewards[i, 0] for i in range(k))
        return steps + discount**k * next_values[k - 1, 0] - values[0, 0]

    mixture = sum((1 - decay) * decay ** (k - 1) * k_step(k) for k in range(1, T))
    mixture += decay ** (T - 1) * k_step(T)
    assert torch.isclose(advantage, mixture, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 999), PROBABILITIES)
def test_decay_zero_is_the_one_step_error_and_decay_one_is_monte_carlo(seed, discount):
    rewards, values, next_values, terminated, truncated = data = experience(seed)
    delta = errors(rewards, values, next_values, terminated, discount)
    assert torch.equal(gae(*data, discount=discount, decay=0.0), delta)

    next_values[:-1] = torch.where((terminated | truncated)[:-1], next_values[:-1], values[1:])
    monte_carlo = gae(rewards, values, next_values, terminated, truncated,
                      discount=discount, decay=1.0)  # fmt: skip
    T, N = rewards.shape
    for n in range(N):
        following = next_values[-1, n]
        for t in reversed(range(T)):
            if terminated[t, n]:
                following = torch.zeros(())
            elif truncated[t, n]:
                following = next_values[t, n]
            following = rewards[t, n] + discount * following
            assert torch.isclose(monte_carlo[t, n], following - values[t, n], atol=1e-10)


def test_a_truncated_step_bootstraps_its_own_last_observation_and_a_terminated_one_nothing():
    """One episode of two steps that pays 1 a step, then another; by hand, γ = ½, λ = 1."""
    rewards = torch.ones(3, 1)
    values = torch.tensor([[10.0], [20.0], [30.0]])
    next_values = torch.tensor([[20.0], [8.0], [4.0]])
    ends = torch.tensor([[False], [True], [False]])
    never = torch.zeros_like(ends)
    truncated = gae(rewards, values, next_values, never, ends, discount=0.5, decay=1.0)
    assert truncated.flatten().tolist() == [1 + 0.5 * (1 + 0.5 * 8) - 10, 1 + 0.5 * 8 - 20, -27.0]
    terminated = gae(rewards, values, next_values, ends, never, discount=0.5, decay=1.0)
    assert terminated.flatten().tolist() == [1 + 0.5 * 1 - 10, 1 - 20, -27.0]
    both = gae(rewards, values, next_values, ends, ends, discount=0.5, decay=1.0)
    assert torch.equal(both, terminated)


def test_whatever_stands_behind_a_terminated_step_is_ignored():
    rewards, values, next_values, terminated, truncated = experience(3)
    terminated[4] = True
    truncated[4] = False
    reference = gae(rewards, values, next_values, terminated, truncated, discount=0.9, decay=0.9)
    next_values[4] = float("nan")
    poisoned = gae(rewards, values, next_values, terminated, truncated, discount=0.9, decay=0.9)
    assert torch.equal(reference, poisoned)


def test_nothing_leaks_backwards_over_the_end_of_an_episode():
    rewards, values, next_values, terminated, truncated = experience(5, ends=0.0)
    truncated[4] = True
    before = gae(rewards, values, next_values, terminated, truncated, discount=0.9, decay=0.9)
    rewards[5:] += 100
    after = gae(rewards, values, next_values, terminated, truncated, discount=0.9, decay=0.9)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])
    rewards[6] = float("nan")
    poisoned = gae(rewards, values, next_values, terminated, truncated, discount=0.9, decay=0.9)
    assert torch.equal(before[:5], poisoned[:5])


def test_the_result_of_no_steps_is_empty():
    empty = torch.zeros(0, 4)
    none = torch.zeros(0, 4, dtype=torch.bool)
    assert gae(empty, empty, empty, none, none, discount=0.9, decay=0.9).shape == (0, 4)


def test_wrong_shapes_and_settings_are_refused():
    data = list(experience(0))
    with pytest.raises(ValueError, match=r"one shape \(T, N\)"):
        gae(data[0][:-1], *data[1:], discount=0.9, decay=0.9)
    with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\], got 1.1"):
        gae(*data, discount=1.1, decay=0.9)
    with pytest.raises(ValueError, match="must be bool"):
        gae(*data[:3], data[3].float(), data[4], discount=0.9, decay=0.9)  # type: ignore[misc]
    with pytest.raises(ValueError, match="decay"):
        gae(*data, discount=0.9, decay=float("nan"))

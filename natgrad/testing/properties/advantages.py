"""Checks of generalised advantage estimation. G1-G5."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.rollout import Rollout
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import rollouts
from natgrad.testing.subjects.advantages import AdvantageEstimator

DISCOUNTS = st.sampled_from([1.0, 0.99, 0.5, 0.0])
SLACK = 1e-10


@check(
    "G1",
    Kind.ADVANTAGES,
    "A = (1 − λ) Σ_k λ^(k−1) A^(k), the mixture of the k-step estimators, within the episode",
    tolerance="1e-10",
    rollout=rollouts(),
    discount=DISCOUNTS,
    decay=st.sampled_from([0.95, 0.5]),
)
def it_is_the_mixture_of_k_step_estimators(
    estimate: AdvantageEstimator, rollout: Rollout, discount: float, decay: float
) -> None:
    found = estimate(*rollout.tensors, discount=discount, decay=decay).flatten().tolist()
    delta = rollout.differences(discount)
    for t in range(len(delta)):
        length = rollout.to_the_end(t)
        steps = [sum(discount**i * delta[t + i] for i in range(k)) for k in range(1, length + 1)]
        # Beyond the end of the episode each k-step estimator equals the last one within it.
        mixture = sum((1 - decay) * decay**k * value for k, value in enumerate(steps[:-1]))
        _assert_close(found[t], mixture + decay ** (length - 1) * steps[-1], t)


@check(
    "G2",
    Kind.ADVANTAGES,
    "λ = 0 gives the temporal difference δ_t = r_t + γ V(s_{t+1}) − V(s_t)",
    tolerance="1e-10",
    rollout=rollouts(),
    discount=DISCOUNTS,
)
def without_decay_it_is_the_difference(
    estimate: AdvantageEstimator, rollout: Rollout, discount: float
) -> None:
    found = estimate(*rollout.tensors, discount=discount, decay=0.0).flatten().tolist()
    for t, expected in enumerate(rollout.differences(discount)):
        _assert_close(found[t], expected, t)


@check(
    "G3",
    Kind.ADVANTAGES,
    "λ = 1 gives the discounted rewards to the episode's end, plus V there if it was cut, minus V",
    tolerance="1e-10",
    rollout=rollouts(),
    discount=DISCOUNTS,
)
def with_full_decay_it_is_monte_carlo(
    estimate: AdvantageEstimator, rollout: Rollout, discount: float
) -> None:
    found = estimate(*rollout.tensors, discount=discount, decay=1.0).flatten().tolist()
    rewards, values, following = (tensor.flatten().tolist() for tensor in rollout.tensors[:3])
    for t in range(len(found)):
        length = rollout.to_the_end(t)
        last = t + length - 1
        returned = sum(discount**i * rewards[t + i] for i in range(length))
        if rollout.ends[last] != "x":
            returned += discount**length * following[last]
        _assert_close(found[t], returned - values[t], t)


@check(
    "G4",
    Kind.ADVANTAGES,
    "a terminated step bootstraps 0 whatever V says there, NaN too; a truncated one V of its own "
    "last observation",
    tolerance="1e-10",
    found=["gymnasium's TimeLimit read as termination: a bias in every bootstrapped target"],
    seed=st.integers(0, 2**20),
    decay=st.sampled_from([0.0, 0.95, 1.0]),
)
def termination_is_no_truncation(estimate: AdvantageEstimator, seed: int, decay: float) -> None:
    for end in "x|":
        rewards, values, following, terminated, truncated = Rollout(f".{end}", seed).tensors
        if end == "x":
            following = torch.where(terminated, math.nan, following)
        tensors = rewards, values, following, terminated, truncated
        found = float(estimate(*tensors, discount=0.9, decay=decay)[-1])
        bootstrapped = 0.0 if end == "x" else 0.9 * float(following[-1])
        _assert_close(found, float(rewards[-1]) + bootstrapped - float(values[-1]), 1)


@check(
    "G5",
    Kind.ADVANTAGES,
    "nothing leaks over the end of an episode, nor from one environment into another",
    tolerance="none",
    rollout=rollouts(),
    other=rollouts(),
    decay=st.sampled_from([0.95, 1.0]),
)
def nothing_leaks(
    estimate: AdvantageEstimator, rollout: Rollout, other: Rollout, decay: float
) -> None:
    alone = estimate(*rollout.tensors, discount=0.9, decay=decay)
    T = len(rollout.ends)
    beside = Rollout((other.ends * T)[:T], other.seed)
    pairs = zip(rollout.tensors, beside.tensors, strict=True)
    both = estimate(*(torch.cat(pair, dim=1) for pair in pairs), discount=0.9, decay=decay)
    assert torch.equal(both[:, :1], alone), "another environment changes the advantages"
    before = Rollout("..x", other.seed)
    joined = (torch.cat(pair) for pair in zip(before.tensors, rollout.tensors, strict=True))
    first = estimate(*joined, discount=0.9, decay=decay)[:3]
    expected = estimate(*before.tensors, discount=0.9, decay=decay)
    assert torch.equal(first, expected), "a later episode changes the advantages"


def _assert_close(got: float, expected: float, t: int) -> None:
    assert abs(got - expected) <= SLACK * (1 + abs(expected)), (
        f"step {t}: advantage {got:.12g}, expected {expected:.12g}"
    )

"""Policies with a memory: one step at a time and whole sequences are one function."""

from typing import Any

import gymnasium as gym
import numpy as np
import optree
import pytest
import torch
from gymnasium import spaces

from rl_plugins import train
from rl_plugins.agents.actor_critic import ActorCritic
from rl_plugins.agents.networks import OnPolicyConfig
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.policies import Remembering

COUNT, STEPS, MEMORY = 3, 9, 5
BOX = spaces.Box(-np.inf, np.inf, (4,), np.float32)
PICTURE = spaces.Box(0, 255, (10, 9, 1), np.uint8)
OBSERVATIONS = {
    "numbers": BOX,
    "choice": spaces.Discrete(4, start=2),
    "numbers and choices": spaces.Tuple([BOX, spaces.MultiDiscrete([2, 3])]),
    "picture": PICTURE,
    "everything": spaces.Dict(
        speed=BOX, bits=spaces.MultiBinary(2), eye=PICTURE, action_mask=spaces.MultiBinary(3)
    ),
}


def agent(space, generator, actions=3):
    config = OnPolicyConfig(hidden_sizes=(8,), memory_size=MEMORY, normalise_observations=False)
    built = ActorCritic(space, spaces.Discrete(actions), config, generator)
    with torch.no_grad():  # a new policy answers next to nothing, whatever it remembers
        for parameter in built.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return built


def observe(space, generator, *shape):
    """Observations of a space with leading dimensions ``shape``."""
    if isinstance(space, spaces.Dict):
        found = {key: observe(part, generator, *shape) for key, part in space.spaces.items()}
        if "action_mask" in found:
            found["action_mask"][..., 0] = 1
        return found
    if isinstance(space, spaces.Tuple):
        return tuple(observe(part, generator, *shape) for part in space.spaces)
    full = (*shape, *space.shape)
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), full, generator=generator) + int(space.start)
    if isinstance(space, (spaces.MultiBinary, spaces.MultiDiscrete)):
        return torch.randint(2, full, generator=generator)
    if space.dtype == np.uint8:
        return torch.randint(256, full, generator=generator, dtype=torch.uint8)
    return torch.randn(full, generator=generator)


def sequences(space, generator):
    starts = torch.rand(COUNT, STEPS, generator=generator) < 0.3
    starts[0] = False  # one that never ends
    starts[1, 0] = starts[1, 4:6] = starts[1, -1] = True  # at the edges, and one of one step
    return {
        "observations": observe(space, generator, COUNT, STEPS),
        "starts": starts,
        "memory": torch.randn(COUNT, MEMORY, generator=generator).tanh(),
    }


def step_by_step(policy, batch):
    """Logits (N, T, 3) of ``advance``, forgetting where an episode starts."""
    memory, logits = batch["memory"], []
    for t in range(STEPS):
        memory = torch.where(batch["starts"][:, t : t + 1], policy.initial_memory(COUNT), memory)
        now = optree.tree_map(lambda leaf, t=t: leaf[:, t], batch["observations"])
        distribution, memory = policy.advance(now, memory)
        logits.append(distribution.logits)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_a_sequence_is_the_same_as_its_steps(name, generator):
    policy = agent(OBSERVATIONS[name], generator).policy
    batch = sequences(OBSERVATIONS[name], generator)
    together = policy(batch)
    assert together.batch_shape == (COUNT, STEPS)
    assert torch.allclose(together.logits, step_by_step(policy, batch), rtol=1e-5, atol=1e-6)
    assert together.logits.std(dim=1).min() > 1e-3  # it does say something


def test_in_double_precision_too(generator):
    policy = agent(BOX, generator).policy.double()
    batch: Any = optree.tree_map(
        lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, sequences(BOX, generator)
    )
    batch["memory"] = policy.initial_memory(COUNT)
    together = policy(batch).logits
    assert together.dtype == torch.float64
    assert torch.allclose(together, step_by_step(policy, batch), rtol=1e-12)


def test_one_sequence_of_one_step_is_a_step(generator):
    policy = agent(BOX, generator).policy
    batch = {
        "observations": torch.randn(1, 1, 4, generator=generator),
        "starts": torch.zeros(1, 1).bool(),
        "memory": torch.randn(1, MEMORY, generator=generator),
    }
    one, _ = policy.advance(batch["observations"][:, 0], batch["memory"])
    assert torch.allclose(policy(batch).logits[:, 0], one.logits, rtol=1e-6)


def test_a_step_depends_on_the_steps_before_it_in_its_own_episode_and_on_nothing_else(generator):
    """The Jacobian of every step's logits in every observation and in the memory."""
    policy = agent(BOX, generator).policy
    batch = sequences(BOX, generator)
    starts = batch["starts"]
    inputs = (batch["observations"].requires_grad_(), batch["memory"].requires_grad_())
    episodes = starts.long().cumsum(dim=1)
    for n in range(COUNT):
        for t in range(STEPS):
            logits = policy(batch).logits[n, t]
            weight = torch.tensor([1.0, 0.5, -0.3])
            seen, remembered = torch.autograd.grad(logits @ weight, inputs)
            for other in range(COUNT):
                reached = [
                    other == n and s <= t and bool(episodes[n, s] == episodes[n, t])
                    for s in range(STEPS)
                ]
                assert seen[other].any(dim=1).tolist() == reached
                assert bool(remembered[other].any()) is (other == n and not episodes[n, t])


def test_memories_of_a_rollout_are_what_the_policy_had_before_each_step(generator):
    """Acting, and learning from it later, are one function: no ratio differs from 1."""
    environments = make_environments("test/Counter-v0", 2)
    built = agent(environments.single_observation_space, generator, actions=2)
    collector = RolloutCollector(
        environments, built.behaviour(2, explore=True), seed=0, generator=generator
    )
    for _ in range(3):  # 7 steps: episodes of 3 and 5 end everywhere, and at the last step too
        rollout = collector.collect(7)
        # An episode begins with an empty memory, and nothing else does.
        assert rollout.memories is not None
        assert torch.equal(rollout.memories.any(dim=2), ~rollout.starts)
        learnt = built.policy(built.learning_batch(rollout).observations).logits
        for t in range(7):
            acted, _ = built.policy.advance(rollout.observations[t], rollout.memories[t])
            assert torch.allclose(learnt[:, t], acted.logits, rtol=1e-5, atol=1e-6)


def test_only_the_environments_that_start_anew_forget(generator):
    policy = agent(BOX, generator).policy
    behaviour = Remembering(policy, 4, lambda actions: actions, explore=False)
    assert behaviour.memory is not None
    assert not behaviour.memory.any()
    with torch.inference_mode():
        behaviour.act(torch.randn(4, 4, generator=generator), generator)
    before = behaviour.memory.clone()
    assert before.any(dim=1).all()
    behaviour.forget(torch.tensor([True, False, True, False]))
    assert not behaviour.memory[[0, 2]].any()
    assert torch.equal(behaviour.memory[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("memory", [0, MEMORY])
@pytest.mark.parametrize(
    "name", [name for name in OBSERVATIONS if name not in ("choice", "picture")]
)
@pytest.mark.parametrize("hidden_sizes", [(), (8,)])
def test_policy_and_critic_stay_the_functions_they_are_when_the_statistics_move(
    name, memory, hidden_sizes, generator
):
    space = OBSERVATIONS[name]
    config = OnPolicyConfig(hidden_sizes=hidden_sizes, memory_size=memory)
    built: Any = ActorCritic(space, spaces.Discrete(3), config, generator)

    def numbers_of(observations, offset, scale):
        """Numbers moved; choices, bits and pictures as they are."""
        return optree.tree_map(
            lambda leaf: scale * leaf + offset if leaf.is_floating_point() else leaf, observations
        )

    def functions(observations):
        if not memory:
            return built.policy(observations).logits, built.critic(observations)
        remembered = torch.linspace(-1, 1, 40 * memory).view(40, memory)
        distribution, carried = built.policy.advance(observations, remembered)
        return distribution.logits, carried, built.critic(observations, remembered)

    first = observe(space, generator, 40)
    built.features.update(first)
    readers = [*built.policy.readers(), *built.critic.readers()]
    with torch.no_grad():
        before = functions(first)
        # Three moves, to other means and deviations, and to a constant.
        for offset, scale in ((3.0, 0.5), (-1.0, 4.0), (0.7, 0.0)):
            features = optree.tree_leaves(built.features(first))[-1].clone()
            built.features.update(numbers_of(observe(space, generator, 40), offset, scale), readers)
            assert not torch.equal(optree.tree_leaves(built.features(first))[-1], features)
        for old, new in zip(before, functions(first), strict=True):
            assert torch.allclose(old, new, rtol=1e-4, atol=1e-5)


class Recall(gym.Env):
    """Shows a cue, then nothing, then asks for the cue: pays 1 for it, 0 for anything else.

    What is seen when it is asked for is the same for both cues: without a memory the best is ½.
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.steps = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action):
        self.steps += 1
        asked = np.array([0, self.steps == 2], np.float32)
        done = self.steps == 3
        return asked, float(done and action == self.cue), done, False, {}


@pytest.fixture(autouse=True, scope="module")
def _task():
    gym.register("test/Recall-v0", entry_point=Recall)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("algorithm", "memory", "low", "high"),
    [("trpo", 8, 1, 1), ("ppo", 8, 1, 1), ("trpo", 0, 0, 0.8)],
    ids=["trpo", "ppo", "without a memory"],
)
def test_what_only_a_memory_can_solve_is_learnt_with_one(algorithm, memory, low, high, tmp_path):
    settings: dict[str, dict[str, Any]] = {
        "trpo": {"max_kl": 0.1},
        "ppo": {"learning_rate": 1e-2, "batch_size": 128, "epochs": 4},
    }
    # Rollouts of 8 steps cut episodes of 3: the memory must come over the cut.
    run = train(
        algorithm, "test/Recall-v0", run_dir=tmp_path / "run", memory_size=memory,
        total_steps=6144, environments=64, rollout_length=8, hidden_sizes=(8,), evaluations=0,
        **settings[algorithm],
    )  # fmt: skip
    assert run.evaluation is not None
    assert low <= run.evaluation.mean <= high

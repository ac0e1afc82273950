import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.distributions import Categorical

from rl_plugins import UsageError
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.policies import Sampling


def uniform():
    return Sampling(
        lambda x: Categorical(logits=torch.zeros(len(x), 2)), lambda a: a.numpy(), explore=True
    )


def collect_from(environments, generator):
    return RolloutCollector(environments, uniform(), seed=0, generator=generator)


def collector(generator, count=2):
    return collect_from(make_environments("test/Counter-v0", count), generator)


def test_observations_are_those_that_the_actions_were_chosen_for(generator):
    rollout = collector(generator).collect(10)
    assert rollout.observations.shape == (10, 2, 2)
    assert rollout.actions.shape == rollout.rewards.shape == (10, 2)
    steps = [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]]
    for n in range(2):
        assert rollout.observations[:, n].tolist() == steps
    assert rollout.next_observations.tolist() == [[2, 2], [2, 2]]


def test_ends_are_told_apart_and_the_true_last_observation_is_kept(generator):
    rollout = collector(generator).collect(10)
    assert rollout.truncated.nonzero().tolist() == [[4, 0], [4, 1]]
    assert rollout.terminated.nonzero().tolist() == [[7, 0], [7, 1]]
    assert rollout.final_observations.tolist() == [[0, 5], [0, 5]]
    assert rollout.episode_returns == [5, 5, 3, 3]
    assert rollout.episode_lengths == [5, 5, 3, 3]


def test_next_values_are_those_of_what_each_step_led_to(generator):
    """V = 10 · episode + step: after the cut at step 5 that is 5, not the reset's 10."""

    def value(observations, memory=None):
        return 10 * observations[..., 0] + observations[..., 1]

    rollout = collector(generator, count=1).collect(10)
    following = rollout.next_values(value, value(rollout.observations)).flatten()
    assert following[:5].tolist() == [1, 2, 3, 4, 5]
    assert following[5:7].tolist() == [11, 12]
    assert following[8:].tolist() == [21, 22]


def test_episodes_run_on_from_one_rollout_to_the_next(generator):
    pieces = collector(generator)
    parts = [pieces.collect(3) for _ in range(4)]
    whole = collector(generator).collect(12)
    assert torch.equal(torch.cat([p.observations for p in parts]), whole.observations)
    assert [r for p in parts for r in p.episode_returns] == whole.episode_returns
    assert torch.equal(torch.cat([p.truncated for p in parts]), whole.truncated)


def test_environments_that_end_at_different_times_keep_their_own_last_observation(generator):
    class Late(gym.Wrapper):
        def reset(self, **kwargs):
            observation, info = super().reset(**kwargs)
            if self.unwrapped.episode == 0:  # type: ignore[attr-defined]
                observation, *_ = self.step(0)
            return observation, info

    environments = SyncVectorEnv(
        [lambda: gym.make("test/Counter-v0"), lambda: Late(gym.make("test/Counter-v0"))],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    rollout = collect_from(environments, generator).collect(5)
    assert rollout.truncated.nonzero().tolist() == [[3, 1], [4, 0]]
    assert rollout.final_observations.tolist() == [[0, 5], [0, 5]]
    assert rollout.episode_returns == [4, 5]


def test_a_step_that_both_terminates_and_truncates_is_terminated(generator):
    class Both(gym.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated or truncated, truncated, info

    environments = SyncVectorEnv(
        [lambda: Both(gym.make("test/Counter-v0"))], autoreset_mode=AutoresetMode.SAME_STEP
    )
    rollout = collect_from(environments, generator).collect(6)
    assert rollout.terminated[4, 0]
    assert not rollout.truncated.any()
    assert len(rollout.final_observations) == 0
    assert rollout.episode_returns == [5]


def test_the_same_seed_gives_the_same_rollout_and_another_seed_another():
    def collect(seed):
        environments = make_environments("CartPole-v1", 3)
        generator = torch.Generator().manual_seed(seed)
        return RolloutCollector(environments, uniform(), seed=seed, generator=generator).collect(40)

    first, again, other = collect(1), collect(1), collect(2)
    assert torch.equal(first.observations, again.observations)
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.observations, other.observations)
    assert not torch.equal(first.observations[:, 0], first.observations[:, 1])


def test_unknown_tasks_and_counts_are_usage_errors():
    with pytest.raises(UsageError, match=r"CartPoleee.*Did you mean"):
        make_environments("CartPoleee-v1", 1)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        make_environments("CartPole-v1", 0)


def test_mujoco_leaves_no_log_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    environments = make_environments("HalfCheetah-v5", 1)
    environments.reset(seed=0)
    environments.step(np.zeros((1, 6), dtype=np.float32))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""

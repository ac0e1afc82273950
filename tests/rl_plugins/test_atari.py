"""Wrappers of Atari games, on a game of three lives with known rewards."""

import gymnasium as gym
import numpy as np
import pytest

from rl_plugins import UsageError, evaluate_run, train
from rl_plugins.atari import Fired, Game, Lives
from rl_plugins.data.task import Task


class ThreeLives(gym.Env):
    """Observes [actions since the game began]; every second one loses a life and pays 7."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, second="FIRE"):
        self.meanings, self.games = ["NOOP", second, "UP"], 0

    def get_action_meanings(self):
        return self.meanings

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.games += 1
        self.actions = []
        return self._observe()

    def step(self, action):
        self.actions.append(int(action))
        lost = len(self.actions) % 2 == 0
        observation, info = self._observe()
        return observation, 7.0 * lost, info["lives"] == 0, False, info

    def _observe(self):
        count = len(self.actions)
        return np.array([count], dtype=np.float32), {"lives": 3 - count // 2}


class Whole(gym.Wrapper):
    """What an evaluation plays."""


def sign(reward):
    return float(np.sign(reward))


class Trained(gym.Wrapper):
    evaluation_wrapper = Whole

    def __init__(self, env):
        super().__init__(Lives(gym.wrappers.TransformReward(env, sign)))


def test_a_life_is_an_episode_and_the_game_goes_on():
    game = ThreeLives()
    env = Lives(game)
    observation, _ = env.reset(seed=0)
    for life in range(3):
        assert observation == [2 * life]
        assert env.step(0)[2] is False
        observation, reward, terminated, truncated, _ = env.step(0)
        assert (reward, terminated, truncated) == (7.0, True, False)
        observation, _ = env.reset()
    assert game.games == 2
    assert observation == [0]


def test_a_seed_begins_a_new_game():
    game = ThreeLives()
    env = Lives(game)
    env.reset(seed=0)
    env.step(0), env.step(0)
    assert env.reset(seed=1)[0] == [0]
    assert game.games == 2


def test_fire_is_pressed_where_a_life_begins():
    game = ThreeLives()
    env = Fired(game)
    assert env.reset(seed=0)[0] == [1]
    rewards = [env.step(2)[1] for _ in range(2)]
    assert game.actions == [1, 2, 1, 2, 1]
    assert rewards == [7.0, 7.0]


def test_fire_is_pressed_in_games_alone_that_have_it():
    game = ThreeLives(second="UP")
    env = Fired(game)
    assert env.reset(seed=0)[0] == [0]
    env.step(2), env.step(2)
    assert game.actions == [2, 2]


def test_evaluations_play_whole_games_for_their_own_scores(tmp_path):
    run = train(
        "a2c",
        ThreeLives,
        wrappers=[Trained],
        total_steps=32,
        environments=2,
        rollout_length=16,
        hidden_sizes=(4,),
        evaluations=1,
        evaluation_episodes=2,
        run_dir=tmp_path / "run",
    )
    assert run.evaluation is not None
    assert run.evaluation.returns == (21.0, 21.0)
    assert run.evaluation.lengths == (6, 6)
    task = Task("game", ThreeLives, wrappers=(Trained,))
    again = evaluate_run(run.directory, task=task, episodes=1)
    assert (again.returns, again.lengths) == ((21.0,), (6,))
    progress = (run.directory / "progress.csv").read_text().splitlines()
    row = dict(zip(progress[0].split(","), progress[-1].split(","), strict=True))
    assert float(row["episode_return"]) == 1.0
    assert float(row["episode_length"]) == 2.0


def test_a_task_that_skips_frames_itself_is_refused():
    env = ThreeLives()
    setattr(env, "_frameskip", 4)  # noqa: B010 (as ale_py names it)
    with pytest.raises(UsageError, match="--env-kwargs frameskip=1"):
        Game(env)

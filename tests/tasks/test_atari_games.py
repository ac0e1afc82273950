"""The Atari wrappers on real games."""

import numpy as np
import pytest

from rl_plugins import UsageError
from rl_plugins.atari import Game, Preprocessed
from rl_plugins.data.task import as_task

pytestmark = [pytest.mark.tasks, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("cv2")
ale_py = pytest.importorskip("ale_py")


def game(name, wrapper, **kwargs):
    return as_task(f"ale_py:ALE/{name}-v5", kwargs={"frameskip": 1, **kwargs}, wrappers=[wrapper])


def played(env, steps):
    """Rewards, ends, lives and observations under random actions."""
    env.action_space.seed(0)
    env.reset(seed=0)
    found = []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        found.append((reward, terminated, info["lives"], observation))
        if terminated or truncated:
            env.reset()
    return found


def test_training_sees_the_sign_of_rewards_and_lives_as_episodes():
    env = game("MsPacman", Preprocessed).make()
    steps = played(env, 600)
    assert {reward for reward, *_ in steps} == {0.0, 1.0}
    assert all(picture.shape == (84, 84) and picture.dtype == np.uint8 for *_, picture in steps)
    ends = [lives for _, terminated, lives, _ in steps if terminated]
    assert ends[:3] == [2, 1, 0]


def test_an_evaluation_sees_scores_and_whole_games():
    env = game("MsPacman", Preprocessed).evaluated.make()
    steps = played(env, 600)
    assert max(reward for reward, *_ in steps) >= 10
    assert all(lives == 0 for _, terminated, lives, _ in steps if terminated)


def test_breakout_is_never_left_waiting_for_its_ball():
    env = game("Breakout", Game, repeat_action_probability=0.0).make()
    env.reset(seed=0)
    for _ in range(1_000):
        if env.step(0)[2]:  # nothing is done, and every ball is served
            break
    else:
        pytest.fail("the game has not ended")


def test_skipped_frames_are_refused_in_a_sentence():
    with pytest.raises(UsageError, match="--env-kwargs frameskip=1"):
        game("Breakout", Game, frameskip=4).make()

"""The usual treatment of Atari games, as wrappers: ``--wrapper rl_plugins.atari:Preprocessed``.

Needs ``ale-py`` and ``opencv-python``. The task must leave the skipping of frames to the wrapper::

    rl-plugins train ppo ALE/Breakout-v5 --import ale_py --env-kwargs frameskip=1 \\
        --wrapper rl_plugins.atari:Preprocessed --frame-stack 4 --critic adam --critic-epochs 4

Gauss-Newton steps, the default, take several times as long as Adam on a critic that sees pictures.
Where each piece comes from:

- grey pictures of 84 x 84, the maximum of the last two frames, four frames an action, up to 30
  actions without effect at the beginning, rewards clipped to their sign, the end of a life as the
  end of an episode in training, evaluation by whole games and unclipped scores: Mnih et al.,
  "Human-level control through deep reinforcement learning", 2015. The pictures, the frames and the
  first actions are ``gymnasium.wrappers.AtariPreprocessing``;
- actions that are repeated by chance (probability 0.25): Machado et al., "Revisiting the Arcade
  Learning Environment", 2018. The tasks ``ALE/...-v5`` do this by themselves. The paper advises
  against the end of a life as the end of an episode: :class:`Game` leaves it away, in training too;
- FIRE pressed for the policy where a game waits for it: Dhariwal et al., "OpenAI Baselines", 2017.
  Here after every lost life too, so that evaluations of whole games do not wait for ever.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from rl_plugins.errors import UsageError


class Game(gym.Wrapper[Any, Any, Any, Any]):
    """Whole games with their own scores, seen as grey pictures: what evaluations play.

    Parameters
    ----------
    env
        An Atari task with ``frameskip=1``.

    Raises
    ------
    UsageError
        Where the task skips frames itself.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        if getattr(env.unwrapped, "_frameskip", 1) != 1:
            raise UsageError(
                "rl_plugins.atari skips frames itself; the task must not: --env-kwargs frameskip=1"
            )
        super().__init__(Fired(gym.wrappers.AtariPreprocessing(env)))


class Preprocessed(gym.Wrapper[Any, Any, Any, Any]):
    """For training: :class:`Game` with the sign of its rewards and an episode a life.

    Parameters
    ----------
    env
        An Atari task with ``frameskip=1``.

    Attributes
    ----------
    evaluation_wrapper
        What evaluations and films of a run with this wrapper use in its place.
    """

    evaluation_wrapper: ClassVar[type[Game]] = Game

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(Lives(gym.wrappers.TransformReward(Game(env), _sign)))


class Fired(gym.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE where a life begins, in games whose second action is FIRE.

    Parameters
    ----------
    env
        A game, with ``info["lives"]``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        meanings = list(env.unwrapped.get_action_meanings())  # type: ignore[attr-defined]
        self._has_fire = meanings[1:2] == ["FIRE"]
        self._lives = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(**options)
        if self._has_fire:
            observation, _, terminated, truncated, info = self.env.step(1)
            if terminated or truncated:
                observation, info = self.env.reset()
        self._lives = info["lives"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See :meth:`gymnasium.Env.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._has_fire and info["lives"] < self._lives and not (terminated or truncated):
            observation, more, terminated, truncated, info = self.env.step(1)
            reward = float(reward) + float(more)
        self._lives = info["lives"]
        return observation, reward, terminated, truncated, info


class Lives(gym.Wrapper[Any, Any, Any, Any]):
    """An episode a life; the game goes on in the next one.

    ``AtariPreprocessing(terminal_on_life_loss=True)`` begins a new game after each life instead, so
    that a policy would see nothing but first lives.

    Parameters
    ----------
    env
        A game, with ``info["lives"]``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lives = 0
        self._next: tuple[Any, dict[str, Any]] | None = None

    def reset(self, *, seed: int | None = None, **options: Any) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.Env.reset`. A seed begins a new game."""
        begin, self._next = self._next, None
        if begin is None or seed is not None:
            begin = self.env.reset(seed=seed, **options)
        self._lives = begin[1]["lives"]
        return begin

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See :meth:`gymnasium.Env.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        lost, self._lives = info["lives"] < self._lives, info["lives"]
        goes_on = lost and not (terminated or truncated)
        self._next = (observation, info) if goes_on else None
        return observation, reward, terminated or goes_on, truncated, info


def _sign(reward: Any) -> float:
    return float(np.sign(reward))

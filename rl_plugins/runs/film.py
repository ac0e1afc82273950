"""A trained policy at its task, in a window or as a film."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rl_plugins.data.environments import make_one
from rl_plugins.data.task import Task
from rl_plugins.data.task_check import check_task
from rl_plugins.data.workers import fault
from rl_plugins.errors import UsageError, one_line
from rl_plugins.runs.agent import Agent
from rl_plugins.runs.callbacks import Moment
from rl_plugins.runs.evaluation import Evaluation
from rl_plugins.runs.files import replace_whole
from rl_plugins.runs.loading import trained
from rl_plugins.runs.recorded import Which, task_of

FRAMES_PER_SECOND = 30
MOST_FRAMES = 100_000


def watch_run(
    run_dir: Path | str,
    *,
    out: Path | None = None,
    episodes: int = 1,
    checkpoint: Which = "last",
    seed: int = 0,
    step_limit: int = 2_000,
    task: Any = None,
    imports: Sequence[str] = (),
    accept_config: bool = False,
) -> Evaluation:
    """Play episodes with the mode of a policy, and show them.

    Parameters
    ----------
    run_dir
        The run's directory.
    out
        A film, .mp4 or .gif; None: a window.
    episodes
        Their number.
    checkpoint, task, imports, accept_config
        As in :func:`rl_plugins.runs.evaluate_run`.
    seed
        Of the first episode.
    step_limit
        Steps after which an episode is cut.

    Raises
    ------
    UsageError
        Where there is no checkpoint, the task draws no pictures, or the film cannot be written.
    """
    if episodes < 1 or step_limit < 1:
        raise UsageError("episodes and step_limit must be at least 1")
    if out is not None and out.suffix not in (".mp4", ".gif"):
        raise UsageError(f"a film is an .mp4 or a .gif, got {out.name!r}")
    plugin, recorded, observed, acted = trained(
        Path(run_dir), checkpoint, task=task, imports=imports, accept_config=accept_config
    )
    mode = "human" if out is None else "rgb_array"
    if out is not None:
        _draw_without_display()
    environment = make_one(task_of(recorded, task).evaluated, render_mode=mode)
    try:
        agent = Agent(plugin, observed, acted)
        frames: list[NDArray[np.uint8]] | None = None if out is None else []
        played = [
            film_episode(agent, environment, seed + number, step_limit, frames)
            for number in range(episodes)
        ]
        if out is not None and frames is not None:
            write_film(frames, out, environment.metadata.get("render_fps", FRAMES_PER_SECOND))
    except gym.error.DependencyNotInstalled as error:
        raise UsageError(f"the task cannot be shown: {one_line(error)}") from error
    finally:
        environment.close()
    returns, lengths, cut = zip(*played, strict=True)
    return Evaluation(returns, lengths, sum(cut))


class FilmEvaluations:
    """A callback that films an episode at every evaluation.

    Parameters
    ----------
    task
        What is played, on a copy of its own.
    seed
        Of the episodes.
    step_limit
        Steps after which one is cut.

    Raises
    ------
    UsageError
        Where the task draws no pictures: before a run begins, not in the middle of it.
    """

    def __init__(self, task: Task, seed: int, step_limit: int) -> None:
        if task.vector is not None:
            raise UsageError("a vector environment cannot be filmed; pass a task that is copied")
        _draw_without_display()
        self._task, self._seed, self._step_limit = task.evaluated, seed, step_limit
        self._found = check_task(self._task)
        environment = self._made()
        environment.reset(seed=seed)
        _picture(environment)
        environment.close()

    def _made(self) -> gym.Env[Any, Any]:
        return make_one(self._task, found=self._found, render_mode="rgb_array")

    def on_evaluation(self, moment: Moment) -> None:
        """See :class:`rl_plugins.Callback`.

        Parameters
        ----------
        moment
            The run now.
        """
        environment, frames = self._made(), list[NDArray[np.uint8]]()
        try:
            film_episode(moment.agent, environment, self._seed, self._step_limit, frames)
        finally:
            environment.close()
        rate = environment.metadata.get("render_fps", FRAMES_PER_SECOND)
        write_film(frames, moment.directory / f"film-{moment.steps}.mp4", rate)


def _draw_without_display() -> None:
    """Let MuJoCo and SDL draw into memory on a machine without a screen, unless told otherwise."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def film_episode(
    agent: Agent,
    environment: gym.Env[Any, Any],
    seed: int,
    step_limit: int,
    frames: list[NDArray[np.uint8]] | None,
) -> tuple[float, int, bool]:
    """Play one episode: its return, its length, and whether it was cut.

    Parameters
    ----------
    agent, environment
        The policy, and where it acts.
    seed, step_limit
        Of the episode.
    frames
        Takes its pictures; None: it is shown in a window.

    Raises
    ------
    UsageError
        Where the task draws no pictures.
    """
    agent.reset()
    observation, _ = environment.reset(seed=seed)
    total = 0.0
    for step in range(1, step_limit + 1):
        if frames is not None:
            frames.append(_picture(environment))
            if len(frames) > MOST_FRAMES:
                raise UsageError(f"a film has at most {MOST_FRAMES:,} frames; show fewer episodes")
        observation, reward, terminated, truncated, _ = environment.step(agent.act(observation))
        total += float(reward)
        if terminated or truncated:
            return total, step, False
    return total, step_limit, True


def _picture(environment: gym.Env[Any, Any]) -> NDArray[np.uint8]:
    try:
        picture = environment.render()
    except gym.error.DependencyNotInstalled:
        raise
    except Exception as error:  # no display, no OpenGL, a task's own fault
        raise UsageError(f"the task draws no pictures: {fault(error)}") from error
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise UsageError(
            "the task draws no pictures: render() with render_mode='rgb_array' must return an "
            f"array (height, width, 3), got {type(picture).__name__}"
        )
    return picture.astype(np.uint8, copy=False)


def write_film(frames: Sequence[NDArray[np.uint8]], out: Path, rate: float) -> None:
    """Write pictures as a film, whole or not at all.

    Parameters
    ----------
    frames
        (height, width, 3), all alike.
    out
        The file, .mp4 or .gif.
    rate
        Frames a second.

    Raises
    ------
    UsageError
        Where it cannot be written.
    """
    import imageio.v3 as imageio

    rate = float(rate or FRAMES_PER_SECOND)
    # Named: imageio would try another that cannot, and print its traceback when it is collected.
    options: dict[str, Any] = {"fps": rate, "macro_block_size": 2, "plugin": "FFMPEG"}
    if out.suffix == ".gif":
        options = {"duration": 1000 / rate, "loop": 0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # imageio tells of sizes that it rounds
            content = imageio.imwrite("<bytes>", np.stack(frames), extension=out.suffix, **options)
        replace_whole(out, lambda file: file.write(content))
    except (OSError, ValueError, ImportError) as error:
        text = one_line(error)
        raise UsageError(f"cannot write the film {out}: {text}") from error

"""Vector environments from a task's name."""

from __future__ import annotations

import logging

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_plugins.errors import UsageError

logger = logging.getLogger(__name__)


def make_environments(task: str, count: int) -> SyncVectorEnv:
    """``count`` copies of a Gymnasium task, stepped in this process, reset in the same step.

    SAME_STEP autoreset spends no step on a reset and reports the true last observation, which a
    truncated episode bootstraps from. Raises :class:`UsageError` for an unknown task or one whose
    packages are missing.
    """
    if count < 1:
        raise UsageError(f"environments must be at least 1, got {count}")
    _quieten_mujoco()
    try:
        # The checker wraps every step with assertions; a task is checked by its own tests.
        environments = [lambda: gym.make(task, disable_env_checker=True) for _ in range(count)]
        return SyncVectorEnv(environments, autoreset_mode=AutoresetMode.SAME_STEP)
    except (gym.error.Error, ImportError) as error:
        raise UsageError(
            f"cannot make the task {task!r}: {' '.join(str(error).split())}"
        ) from error


def _quieten_mujoco() -> None:
    # MuJoCo 4 prints a deprecation of Gymnasium's own model files for every environment, on stderr
    # and into a file in the working directory. It belongs into a log, not through a progress bar.
    try:
        import mujoco
    except ImportError:
        return
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda message: logger.info("mujoco: %s", message))

"""MuJoCo's warnings, which it prints past Python's own."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def quieten_mujoco() -> None:
    """Send MuJoCo's warnings to a logger, where it is installed."""
    # MuJoCo 4 prints a deprecation of Gymnasium's own model files for every environment, on stderr
    # and into a file in the working directory. On stderr it would cut through the progress line.
    try:
        import mujoco
    except ImportError:
        return
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda message: logger.info("mujoco: %s", message))

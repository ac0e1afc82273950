"""Environments in other processes: waited for with a limit, and ended without waiting."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
import warnings
from typing import Any

from gymnasium.vector import AsyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from rl_plugins.errors import ExperienceError

PATIENCE = 300.0
GRACE = 2.0


def answer_in_time(
    vector: AsyncVectorEnv, call: str, patience: float, *given: Any, **named: Any
) -> Any:
    """The workers' answer to a call.

    Parameters
    ----------
    vector
        The environments.
    call
        "step" or "reset".
    patience
        Seconds to wait.
    *given, **named
        Arguments of the call.

    Raises
    ------
    ExperienceError
        Where a worker has died, or does not answer in time.
    """
    try:
        getattr(vector, f"{call}_async")(*given, **named)
        return getattr(vector, f"{call}_wait")(timeout=patience)
    except multiprocessing.TimeoutError as error:
        raise ExperienceError(
            f"a worker's {call} has not ended within {patience:g} seconds; mend the task, or "
            "raise --worker-timeout"
        ) from error
    except (EOFError, ConnectionError) as error:
        codes = _codes_of_the_dead(vector)
        raise ExperienceError(
            f"a worker process died in its {call} (exit code {codes}): out of memory, killed, "
            "or ended by the task"
        ) from error


def _codes_of_the_dead(vector: AsyncVectorEnv) -> str:
    time.sleep(0.1)  # the pipe breaks before the process is gone
    found = [str(p.exitcode) for p in vector.processes if p.exitcode not in (None, 0)]
    return ", ".join(found) or "unknown"


def close(vector: VectorEnv) -> None:
    """End the environments, without waiting for one that hangs and without an error of its own.

    Parameters
    ----------
    vector
        The environments.
    """
    with warnings.catch_warnings(), contextlib.suppress(Exception, SystemExit):
        warnings.simplefilter("ignore")
        if isinstance(vector, AsyncVectorEnv):
            _end(vector)
        else:
            vector.close()


def _end(vector: AsyncVectorEnv) -> None:
    for process in vector.processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in vector.processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()  # a task may ignore SIGTERM
    # A pending call would be waited for, at pipes whose other ends are gone.
    vector._state = AsyncState.DEFAULT
    with contextlib.suppress(Exception):
        vector.close(terminate=True)
    vector.closed = True


def fault(error: BaseException) -> str:
    """An error of the task's own code in one line, with its place.

    Parameters
    ----------
    error
        Whatever it raised.
    """
    text = " ".join(str(error).split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    # An error that came from another process has lost its place: gymnasium's own says nothing.
    known = bool(frames) and not frames[-1].filename.endswith("async_vector_env.py")
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if known else ""
    return f"{type(error).__name__}: {text}{place}" if text else type(error).__name__ + place

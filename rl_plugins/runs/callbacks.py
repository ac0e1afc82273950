"""Code of the user's own, called during a run, and the rules that end one early."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rl_plugins.errors import UsageError, suggestion
from rl_plugins.runs.agent import Agent
from rl_plugins.runs.evaluation import Evaluation
from rl_plugins.runs.settings import RunSettings
from rl_plugins.runs.tables import numbers, read_rows

ENTRY_POINTS = "rl_plugins.callbacks"


@dataclass(frozen=True)
class Moment:
    """A run as a callback sees it.

    Attributes
    ----------
    steps, total_steps
        Environment steps taken, and to be taken.
    seconds
        Time so far, that before a resumption included.
    row
        The last row of ``progress.csv``, values by column.
    evaluation
        The last one; None before the first.
    best
        The highest mean return of an evaluation; NaN before the first.
    agent
        The policy as it is now. It is the run's own: copy what is to be kept.
    directory
        The run's files.
    """

    steps: int
    total_steps: int
    seconds: float
    row: Mapping[str, Any]
    evaluation: Evaluation | None
    best: float
    agent: Agent
    directory: Path


class Callback:
    """What a run calls on its way. Methods return a reason to end the run, or None to go on.

    An exception ends the run as failed; its files stay valid. Installed packages offer callbacks by
    name in the entry-point group ``rl_plugins.callbacks``: classes, or functions, that are called
    without arguments.

    Examples
    --------
    >>> class Print(Callback):
    ...     def on_evaluation(self, moment):
    ...         print(moment.steps, moment.evaluation.mean)
    >>> _ = Print()
    """

    def on_update(self, moment: Moment) -> str | bool | None:
        """After every update.

        Parameters
        ----------
        moment
            The run now.
        """
        return None

    def on_evaluation(self, moment: Moment) -> str | bool | None:
        """After every evaluation, the final one included.

        Parameters
        ----------
        moment
            The run now.
        """
        return None


class StopAtReturn(Callback):
    """Ends a run whose evaluation reaches a return.

    Parameters
    ----------
    wanted
        The mean return.
    """

    def __init__(self, wanted: float) -> None:
        self._wanted = wanted

    def on_evaluation(self, moment: Moment) -> str | None:
        """See :class:`Callback`."""
        assert moment.evaluation is not None
        reached = moment.evaluation.mean >= self._wanted
        return f"the return of {self._wanted:g} is reached" if reached else None


class StopAtPlateau(Callback):
    """Ends a run whose evaluations no longer improve.

    Parameters
    ----------
    patience
        Evaluations in a row without a new best one.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluation(self, moment: Moment) -> str | None:
        """See :class:`Callback`. From the table, so that a resumed run counts those before too."""
        path = moment.directory / "evaluations.csv"
        (returns,) = numbers(read_rows(path), path, "mean_return")
        waited = len(returns) - 1 - returns.index(max(returns))
        if waited < self._patience:
            return None
        return f"{waited} evaluations in a row brought no new best"


class StopAfterSeconds(Callback):
    """Ends a run after a time.

    Parameters
    ----------
    seconds
        Of the whole run, that before a resumption included.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_update(self, moment: Moment) -> str | None:
        """See :class:`Callback`."""
        return f"{self._seconds:g} seconds are over" if moment.seconds >= self._seconds else None


class Callbacks:
    """All callbacks of a run.

    Parameters
    ----------
    callbacks
        Objects with ``on_update`` or ``on_evaluation``, or both.

    Attributes
    ----------
    reason
        Why one of them ended the run; empty while none has.
    """

    def __init__(self, callbacks: Iterable[Any]) -> None:
        self._callbacks = list(callbacks)
        self.reason = ""

    @classmethod
    def of(cls, run: RunSettings, own: Iterable[Any]) -> Callbacks:
        """The rules that the settings name, the registered callbacks, and the caller's own.

        Parameters
        ----------
        run
            Settings of the loop.
        own
            The caller's.

        Raises
        ------
        UsageError
            For a name that is not registered, and an object with neither method.
        """
        found: list[Any] = []
        if run.stop_return is not None:
            found.append(StopAtReturn(run.stop_return))
        if run.stop_plateau is not None:
            found.append(StopAtPlateau(run.stop_plateau))
        if run.stop_seconds is not None:
            found.append(StopAfterSeconds(run.stop_seconds))
        known = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        for name in run.callbacks:
            if name not in known:
                raise UsageError(f"unknown callback {name!r}; {suggestion(name, known)}")
            found.append(known[name].load()())
        found += own
        for callback in found:
            if not (hasattr(callback, "on_update") or hasattr(callback, "on_evaluation")):
                raise UsageError(
                    f"a callback has on_update(moment) or on_evaluation(moment), {callback!r} has "
                    "neither; see rl_plugins.Callback"
                )
        return cls(found)

    def tell(self, event: str, moment: Callable[[], Moment]) -> None:
        """Call all of them; the first reason to stop stays.

        Parameters
        ----------
        event
            "on_update" or "on_evaluation".
        moment
            Makes what they are told, where there is one to tell.
        """
        for callback in self._callbacks:
            method = getattr(callback, event, None)
            reason = method(moment()) if method is not None else None
            if reason and not self.reason:
                name = type(callback).__name__
                self.reason = reason if isinstance(reason, str) else f"{name} said so"

"""The progress of a run on a terminal or in a log."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay:
    """A live line on a terminal; elsewhere (a log, a pipe) one plain line per evaluation.

    Parameters
    ----------
    console
        Where to write.
    total_steps
        Environment steps of the run.
    """

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            BarColumn(bar_width=20),
            TextColumn("return {task.fields[episode_return]}"),
            TextColumn("{task.fields[summary]}", markup=False),
            TextColumn("{task.fields[speed]:,.0f} steps/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task(
            "", total=total_steps, episode_return="–", summary="", speed=0.0
        )

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, steps: int, episode_return: float | None, summary: str, speed: float) -> None:
        """Show an update.

        Parameters
        ----------
        steps
            Environment steps so far.
        episode_return
            Mean over the episodes that ended; None: none did, and the last one stays in view.
        summary
            Summary of the report.
        speed
            Environment steps a second.
        """
        if episode_return is not None:
            self._progress.update(self._bar, episode_return=f"{episode_return:,.1f}")
        self._progress.update(self._bar, completed=steps, summary=summary, speed=speed)

    def line(self, text: str) -> None:
        """Write a line that stays, above the live one.

        Parameters
        ----------
        text
            Plain text, not markup.
        """
        self._console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

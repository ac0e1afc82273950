"""The progress of a run on a terminal or in a log."""

from __future__ import annotations

from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn
from rich.table import Column
from rich.text import Text

# Below these widths of the terminal a column is left out, so that the others stay whole.
BAR, SUMMARY, SPEED = 110, 72, 60


class _From(TextColumn):
    """A column that a narrow terminal does not show."""

    def __init__(self, text: str, console: Console, width: int, *, give_way: bool = False) -> None:
        column = Column(no_wrap=True, overflow="ellipsis", ratio=1 if give_way else None)
        super().__init__(text, markup=False, table_column=column)
        self._console, self._width = console, width

    def render(self, task: Task) -> Text:
        """See :class:`rich.progress.ProgressColumn`."""
        return super().render(task) if self._console.width >= self._width else Text()


class _Bar(BarColumn):
    def __init__(self, console: Console) -> None:
        super().__init__(bar_width=20)
        self._console = console

    def render(self, task: Task) -> object:  # type: ignore[override]
        return super().render(task) if self._console.width >= BAR else Text()


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
        self._console, self._total = console, total_steps
        self._progress = Progress(
            _From("{task.fields[done]}", console, 0),
            _Bar(console),
            _From("return {task.fields[episode_return]}", console, 0),
            _From("{task.fields[summary]}", console, SUMMARY, give_way=True),
            _From("{task.fields[speed]:,.0f}/s", console, SPEED),
            _From("{task.fields[left]} left", console, 0),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task(
            "",
            total=total_steps,
            done=_done(0, total_steps),
            episode_return="–",
            summary="",
            speed=0.0,
            left="–",
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
        self._progress.update(
            self._bar,
            completed=steps,
            done=_done(steps, self._total),
            summary=summary,
            speed=speed,
            left=timedelta(seconds=int((self._total - steps) / speed) if speed else 0),
        )

    def evaluating(self, ended: int, steps: int) -> None:
        """Show that an evaluation goes on.

        Parameters
        ----------
        ended
            Episodes that have ended.
        steps
            Steps of those that have not.
        """
        text = f"evaluating: {ended} ended, {steps:,} steps"
        self._progress.update(self._bar, summary=text)

    def line(self, text: str) -> None:
        """Write a line that stays, above the live one, broken between words.

        Parameters
        ----------
        text
            Plain text, not markup.
        """
        on_terminal = self._console.is_terminal
        self._console.print(
            text, highlight=False, markup=False, emoji=False, soft_wrap=not on_terminal
        )


def _done(steps: int, total: int) -> str:
    return f"{_short(steps)}/{_short(total)} steps"


def _short(number: int) -> str:
    """10,240 as it is, 1,234,567 as 1.23M."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.4g}M"

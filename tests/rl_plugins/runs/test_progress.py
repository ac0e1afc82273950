"""The live line is whole at any width of the terminal."""

import io
import re

import pytest
from rich.console import Console

from natgrad import LineSearchStatus, Status
from rl_plugins.reports import TrustRegionReport
from rl_plugins.runs.progress import ProgressDisplay

REPORT = TrustRegionReport(
    status=LineSearchStatus.ACCEPTED, kl=0.0372, max_kl=0.04, entropy=1.0, improvement=0.1,
    expected_improvement=0.1, step_fraction=1.0, evaluations=1, gradient_norm=1.0,
    cg_status=Status.CONVERGED, cg_iterations=10, cg_residual=0.1,
)  # fmt: skip


def last_line(width):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with ProgressDisplay(console, 1_000_000) as display:
        display.update(512_000, 4012.3, REPORT.summary, 2112.0)
        display._progress.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue().replace("\r", "\n"))
    return next(line for line in reversed(plain.split("\n")) if "512,000" in line)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut(width):
    line = last_line(width)
    assert len(line) <= width
    assert "…" not in line
    for part in ("512,000/1M steps", "return 4,012.3", REPORT.summary, "2,112/s", "0:03:51 left"):
        assert part in line
    assert ("━" in line) == (width >= 110)


def test_a_narrow_terminal_leaves_columns_out():
    line = last_line(60)
    assert "return 4,012.3" in line
    assert REPORT.summary not in line


def test_sentences_break_between_words():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    text = (
        "settings for this task: environments 16, rollout_length 128, initial_log_std -1.0, max_kl"
    )
    with ProgressDisplay(console, 10) as display:
        display.line(text)
    shown = [line for line in screen.getvalue().split("\n") if "environments" in line]
    assert any(line.rstrip().endswith(("initial_log_std", "-1.0,", "128,")) for line in shown)

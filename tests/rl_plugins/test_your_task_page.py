"""The command lines of docs/pages/your-task.md work, in their order, on the task of the page."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

from rl_plugins.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "your-task.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    task = re.search(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert task is not None
    (tmp_path / "corridor.py").write_text(task[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    gym.registry.pop("Corridor-v0", None)
    yield text
    gym.registry.pop("Corridor-v0", None)
    sys.modules.pop("corridor", None)


def test_the_command_lines_work(page, tmp_path, capsys):
    block = re.search(r"^```\n(rl-plugins train trpo corridor.*?)^```", page, re.M | re.S)
    assert block is not None
    lines = block[1]
    if find_spec("imageio_ffmpeg") is None:
        lines = lines.replace("film.mp4", "film.gif")
    assert lines.count("\n") == 7
    for line in lines.splitlines():
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert "corridor:Corridor-v0 (length=15)" in capsys.readouterr().out
    assert (tmp_path / "policy.onnx").exists()
    assert list(tmp_path.glob("film.*"))

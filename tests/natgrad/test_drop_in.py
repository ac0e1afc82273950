"""docs/examples/drop_in.py with each optimizer in place of Adam, by editing one line."""

import re
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "drop_in.py"
TEXT = SCRIPT.read_text(encoding="utf-8")
FOUND = re.search(r"^optimizer = torch\.optim\.Adam\(.*\)$", TEXT, re.M)
assert FOUND is not None
ADAM = FOUND[0]
OURS = re.findall(r"^# (optimizer = natgrad\.optim\..*\))$", TEXT, re.M)


def run(line, directory, monkeypatch):
    monkeypatch.chdir(directory)
    names = {"__name__": "example"}
    with torch.random.fork_rng():
        exec(compile(TEXT.replace(ADAM, line), str(SCRIPT), "exec"), names)
    return names


def test_every_optimizer_has_its_line():
    import natgrad.optim

    classes = {
        name
        for name in natgrad.optim.__all__
        if isinstance(getattr(natgrad.optim, name), type)
        and issubclass(getattr(natgrad.optim, name), torch.optim.Optimizer)
    }
    assert {line.split(".")[2].split("(")[0] for line in OURS} == classes


@pytest.mark.parametrize("line", OURS, ids=lambda line: line.split("optim.")[1])
def test_one_line_replaces_adam(line, tmp_path, monkeypatch, capsys):
    adam = run(ADAM, tmp_path, monkeypatch)["mean_squared_error"]
    names = run(line, tmp_path, monkeypatch)
    assert names["mean_squared_error"] < adam
    assert not names["optimizer"].last_step.status.nonfinite

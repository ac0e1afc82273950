"""The code of docs/pages/tracking.md: what it writes, and what it prunes."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.tasks, pytest.mark.filterwarnings("ignore")]
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "tracking.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The blocks of the page, run one after the other in one namespace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    namespace = {"__name__": "example"}

    def run(*numbers):
        with torch.random.fork_rng():
            for number in numbers:
                exec(compile(blocks[number], str(PAGE), "exec"), namespace)
        return namespace

    return run


def test_weights_and_biases_gets_every_row(page, tmp_path):
    pytest.importorskip("wandb")
    names = page(0)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()  # names stand in it as they are
    rows = (names["run"].directory / "progress.csv").read_text().splitlines()
    assert content.count(b"explained_variance") >= len(rows) - 1 == 4
    assert content.count(b"evaluation") >= 2


def test_optuna_prunes_and_finds(page):
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("wandb")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = page(0, 1)["study"]
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 6
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert study.best_value == max(t.value for t in study.trials if t.state.name == "COMPLETE")
    for trial in study.trials:
        assert Path(f"runs/trial-{trial.number}/outcome.json").exists()

"""Every Python example of the README and the documentation runs, in its order on the page."""

import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Pages whose code needs packages beyond the extras of the tests; `make test-tasks` runs these.
NEEDS = {"tracking.md": ("wandb", "optuna")}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs are written below the working directory
    for package in NEEDS.get(page.name, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    # The examples draw from the global generator, as a reader's first lines do.
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_names_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make train" in text
    assert "make test" in text

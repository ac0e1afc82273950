"""An algorithm from another package: installed, listed, trained, resumed, refused where broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl_plugins import UsageError
from rl_plugins.plugin import find_plugin

PACKAGE = Path(__file__).parents[1] / "third_party"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line in an environment where the package is installed."""
    work = tmp_path_factory.mktemp("third-party")
    source = shutil.copytree(PACKAGE, work / "source")
    target = work / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--no-index", "--target", target, source],
        check=True,
    )  # fmt: skip

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "rl_plugins", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True, text=True, check=False, cwd=work,
        )  # fmt: skip

    return run


def test_it_is_listed_with_ours(command):
    lines = command("list").stdout.splitlines()
    assert any(line.startswith("vpg") and "VanillaPolicyGradient" in line for line in lines)
    assert any(line.startswith("trpo") for line in lines)


def test_its_settings_are_options_and_it_learns(command, tmp_path):
    done = command(
        "train", "vpg", "CartPole-v1", "--total-steps", 30_000, "--environments", 8,
        "--rollout-length", 100, "--hidden-sizes", 16, "--label", "mine", "--evaluations", 0,
        "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["config"] == {
        "learning_rate": 0.01, "discount": 0.99, "hidden_sizes": [16], "label": "mine",
    }  # fmt: skip
    # A random policy balances for 20 steps. With half the steps one seed in five is below 100, and
    # another rounding is another seed; with these the least of three seeds in two versions is 171.
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["mean_return"] > 100
    evaluated = command("evaluate", tmp_path / "run", "--episodes", 3, "--json")
    assert json.loads(evaluated.stdout)["mean_return"] > 60


def test_a_mistyped_option_of_it_is_one_line(command):
    failed = command("train", "vpg", "CartPole-v1", "--learning-rat", 1)
    assert failed.returncode == 2
    assert "--learning-rat" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:Thing", "cannot be loaded from 'no_such_package:Thing'"),
        ("rl_plugins.trpo:Nothing", "cannot be loaded"),
        ("collections:OrderedDict", "is no plugin: it has no Config, build, behaviour"),
    ],
)
def test_a_broken_entry_point_is_named(value, message, monkeypatch):
    from importlib.metadata import EntryPoint

    from rl_plugins import plugin

    point = EntryPoint("broken", value, "rl_plugins")
    monkeypatch.setattr(plugin, "entry_points", lambda group: [point])
    with pytest.raises(UsageError, match=message):
        find_plugin("broken")

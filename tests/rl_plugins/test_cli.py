import io
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import gymnasium as gym
import pytest

from rl_plugins import plugin, train
from rl_plugins.__main__ import main as program
from rl_plugins.cli import main

QUICK = ["--total-steps", "256", "--environments", "2", "--rollout-length", "64",
         "--hidden-sizes", "8", "--evaluations", "0", "--evaluation-episodes", "3"]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Expected one of {train, resume, evaluate, plot, "),
        ("trian trpo CartPole-v1", "Expected one of {train, resume, evaluate, plot, "),
        ("train", "Name of an algorithm"),
        ("train trpo", "Name of a Gymnasium task"),
        ("train trop CartPole-v1", "unknown algorithm 'trop'; did you mean 'trpo'?"),
        ("train trpo CartPol-v1", "Did you mean: `CartPole`?"),
        ("train trpo CartPole-v9", "CartPole"),
        ("train trpo CartPole-v1 --max-kll 0.1", "Perhaps you meant: --max-kl"),
        ("train trpo CartPole-v1 --max-kl small", "could not convert string to float: 'small'"),
        ("train trpo CartPole-v1 --environments 0", "environments must be at least 1, got 0"),
        ("train trpo CartPole-v1 --critic newton", "newton"),
        ("train trpo CartPole-v1 --max-kl -1", "max_kl must be above 0, got -1.0"),
        ("train trpo CartPole-v1 --discount 1.5", "discount must lie in [0, 1], got 1.5"),
        ("train trpo CartPole-v1 --fisher-stride 0", "fisher_stride must be at least 1, got 0"),
        ("train ddpg CartPole-v1", "Box of floats"),
        ("train trpo no_such_module:Task-v0", "no_such_module"),
        ("train --seed 1 trpo CartPole-v1", "rl-plugins train ALGORITHM TASK [options]"),
        ("train trpo --seed 1 CartPole-v1", "rl-plugins train ALGORITHM TASK [options]"),
        ("train trpo CartPole-v1 --seed 99999999999999999999", "seed must lie in"),
        ("train trpo Pendulum-v1 --initial-log-std nan", "initial_log_std must lie in"),
        ("train trpo CartPole-v1 --run-dir /dev/null/x", "cannot make the run directory"),
        ("evaluate nowhere", "nowhere is not a run directory"),
        ("evaluate nowhere --episode 3", "unknown option --episode"),
        ("list --all", "unknown option --all"),
        ("resume", "Directory of a run"),
        ("resume nowhere", "nowhere is not a run directory"),
        ("plot", "name at least one run directory"),
        ("plot nowhere", "nowhere is not a run directory"),
        ("train td3 FrozenLake-v1", "Box of floats"),
        ("train td3 Pendulum-v1 --buffer-size 10", "buffer_size (10) must hold learning_starts"),
        ("train trpo CartPole-v1 --backend gpu", "('sync', 'async', 'envpool')"),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("rl-plugins: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_train_then_evaluate(tmp_path, capsys):
    directory = tmp_path / "run"
    assert main(["train", "trpo", "CartPole-v1", *QUICK, "--run-dir", str(directory)]) == 0
    out = capsys.readouterr().out
    assert "trpo on CartPole-v1, seed 0, 256 steps (settings for this task: all overridden)" in out
    assert f"run: {directory}" in out
    assert f"curve: {directory / 'curve.png'}" in out

    assert main(["evaluate", str(directory), "--episodes", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    outcome = json.loads((directory / "outcome.json").read_text())
    assert record["mean_return"] == outcome["mean_return"]
    assert len(record["returns"]) == len(record["lengths"]) == record["episodes"] == 3

    assert main(["evaluate", str(directory), "--episodes", "2"]) == 0
    assert "over 2 episodes" in capsys.readouterr().out


def test_a_second_run_into_the_same_directory_is_refused(tmp_path, capsys):
    (tmp_path / "precious").write_text("data")
    assert main(["train", "trpo", "CartPole-v1", *QUICK, "--run-dir", str(tmp_path)]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_runs_go_below_runs_unless_told_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "trpo", "CartPole-v1", *QUICK, "--seed", "4"]) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.startswith("trpo-CartPole-v1-seed4-")
    assert str(directory.name) in capsys.readouterr().out


def test_list_names_algorithms_and_tuned_tasks_in_columns(capsys, monkeypatch):
    ours = plugin.registered_plugins()
    long = EntryPoint("a-long-name", "package:Class", "rl_plugins")
    monkeypatch.setattr(plugin, "entry_points", lambda group: [long, *ours.values()])
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(["a-long-name", *ours])
    (trpo,) = [line for line in lines if line.startswith("trpo")]
    assert "HalfCheetah-v5" in trpo
    assert len({line.index("settings for:") for line in lines}) == 1
    assert lines[0].split()[1] == "package:Class"


def test_help_shows_every_option_with_its_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main(["train", "trpo", "HalfCheetah-v5", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--total-steps", "--max-kl", "--run-dir", "--critic", "--seed"):
        assert option in out
    assert "in nats" in out
    assert "0.04" in out  # the tuned default of this task, not the algorithm's


def test_help_of_train_names_what_comes_first_and_where_the_options_are(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "rl-plugins train [-h] ALGORITHM TASK" in out
    assert "--help after these shows all of them" in out


def test_the_names_of_directories_are_no_markup(tmp_path, monkeypatch, capsys):
    """rich would swallow "[a]", replace ":tada:", and raise at "[/b]"."""
    monkeypatch.chdir(tmp_path)
    directory = "[a] :tada: [/b]"
    assert main(["train", "trpo", "CartPole-v1", *QUICK, "--run-dir", directory]) == 0
    assert f"run: {directory}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("train td3 Pendulum-v1 --help", 0),  # γ
        ("evaluate run --episodes 1", 0),  # ±
        ("train trpo CartPole-v1 --max-kll 1", 2),  # π, and a report without frames
    ],
)
def test_a_terminal_without_such_letters_is_served_too(
    arguments, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train("trpo", "CartPole-v1", run_dir="run", total_steps=8, environments=1, rollout_length=8,
          hidden_sizes=(4,), evaluations=0, evaluation_episodes=1)  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["rl-plugins", *arguments.split()])
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        try:
            ended: Any = program()
        except SystemExit as stop:  # --help
            ended = stop.code
        terminal.flush()
        shown = terminal.buffer.getvalue()
    assert ended == status
    assert bool(shown) == (status == 0)
    err = capsys.readouterr().err
    assert err.count("\n") == (1 if status else 0)
    assert "-----" not in err


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "rl_plugins", "train", "trpo", "NoSuchTask-v0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's folder with a module that registers a task and has a wrapper."""
    (tmp_path / "mytasks.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Short(gym.Wrapper):\n"
        "    def step(self, action):\n"
        "        *rest, info = self.env.step(action)\n"
        "        return rest[0], 2 * rest[1], *rest[2:], info\n"
        "class Mine(CartPoleEnv):\n"
        "    def __init__(self, gravity=9.8, name='', **options):\n"
        "        super().__init__(**options)\n"
        "        self.gravity = gravity\n"
        "        assert name in ('', 'a text')\n"
        "gym.register('Mine-v0', Mine, max_episode_steps=50)\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mytasks", None)
    gym.registry.pop("Mine-v0", None)


def test_a_module_of_one_s_own_is_named_on_the_command_line(own_module, capsys):
    options = ["--import", "mytasks", "--wrapper", "mytasks:Short", "--frame-stack", "3",
               "--env-kwargs", "gravity=5.0", "name=a text"]  # fmt: skip
    command = ["train", "ppo", "Mine-v0", *QUICK, *options, "--run-dir", "run"]
    assert main(command) == 0, capsys.readouterr().err
    assert "observations: 12 standardised numbers" in capsys.readouterr().out
    config = json.loads((own_module / "run" / "config.json").read_text())["run"]
    assert config["env_kwargs"] == {"gravity": 5.0, "name": "a text"}
    assert (config["wrappers"], config["frame_stack"]) == (["mytasks:Short"], 3)


def test_what_only_a_file_names_is_not_imported(own_module, capsys):
    command = ["train", "ppo", "mytasks:Mine-v0", *QUICK, "--run-dir", "run"]
    assert main(command) == 0
    del sys.modules["mytasks"], gym.registry["Mine-v0"]
    capsys.readouterr()
    for command in (["evaluate", "run"], ["resume", "run", "--total-steps", "512"]):
        assert main(command) == 2
        assert "--import mytasks" in capsys.readouterr().err
        assert "mytasks" not in sys.modules
    assert main(["resume", "run", "--total-steps", "512", "--import", "mytasks"]) == 0
    assert main(["evaluate", "run", "--episodes", "2", "--import", "mytasks"]) == 0


def test_the_end_of_a_run_names_the_next_commands(tmp_path, capsys):
    directory = tmp_path / "run"
    assert main(["train", "trpo", "CartPole-v1", *QUICK, "--run-dir", str(directory)]) == 0
    assert f"resume --total-steps N  {directory}" in capsys.readouterr().out
    assert main(["resume", str(directory), "--total-steps", "512"]) == 0
    assert main(["train", "ppo", "CartPole-v1", *QUICK, "--from", str(directory),
                 "--run-dir", str(tmp_path / "second")]) == 0  # fmt: skip
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["from"] == str(directory)
    assert main(["evaluate", str(directory), "--episodes", "2", "--checkpoint", "best"]) == 0

"""Command lines of odd, wrong and extreme arguments: an exit status and one line at most."""

import dataclasses
import random
import shutil
import signal
import sys
from typing import Any

import pytest

from rl_plugins import train
from rl_plugins.cli import main
from rl_plugins.plugin import find_plugin
from rl_plugins.runs.settings import RunSettings

SECONDS = 30
SMALL = ["--total-steps", "12", "--environments", "2", "--rollout-length", "3", "--hidden-sizes",
         "2", "--evaluation-episodes", "1", "--evaluation-step-limit", "5"]  # fmt: skip
REPLAY = ["--learning-starts", "4", "--batch-size", "2", "--buffer-size", "16"]
TASKS = {"trpo": "CartPole-v1", "npg": "Pendulum-v1", "ppo": "CartPole-v1", "a2c": "CartPole-v1",
         "ddpg": "Pendulum-v1", "td3": "Pendulum-v1", "acktr": "CartPole-v1"}  # fmt: skip
OFF_POLICY = ("ddpg", "td3")
# Each is far too small, far too large, or no value at all: none makes a run a long one.
WORDS = ["", " ", "-", "--", "-1", "0", "1", "2", "3", "-0.0", "0.5", "1.5", "1e-308", "1e308",
         "1e400",
         "nan", "inf", "-inf", "None", "True", "False", "9007199254740993", "18446744073709551616",
         "1" * 400, "1" * 5_000, "٣", "²", "é", "\udcff", "x" * 5_000, "a b", "a\nb", "[red]", "{}",
         "[]", "[1]", "%s", "$HOME", "0x10", "1_0", "Adam", "evil:Adam", "..:x", ":", "a:b:c",
         "natgrad.optim:NonlinearCG", "CartPole-v1", "NoSuch-v0", "/", ".", "..", "/dev/null",
         "/dev/null/x", "run", "run/config.json", "missing", "x=1", "=", "render_mode=human",
         "gravity=1e400", "--help", "-h", "--seed", "--no-such"]  # fmt: skip
PLAUSIBLE = ["0", "1", "2", "3", "0.5", "0.9", "1e-3", "True", "False", "None"]
OPTIONS = {
    "resume": ["--total-steps", "--from-interruption", "--accept-config", "--import"],
    "evaluate": ["--episodes", "--json", "--checkpoint", "--task", "--step-limit",
                 "--accept-config", "--import"],
    "watch": ["--out", "--episodes", "--checkpoint", "--seed", "--step-limit", "--accept-config"],
    "plot": ["--out"],
    "compare": ["--out"],
    "export": ["--checkpoint", "--accept-config", "--import"],
    "list": [],
}  # fmt: skip


def words(draw: random.Random, count: int) -> list[str]:
    """Half of them such as an option may well take."""
    return [draw.choice(PLAUSIBLE if draw.random() < 0.6 else WORDS) for _ in range(count)]


def options_of(algorithm: str) -> list[str]:
    """All options of `train`, but those that start processes."""
    renamed = {"wrappers": "wrapper", "callbacks": "callback", "imports": "import"}
    names = [
        renamed.get(field.name, field.name)
        for kind in (RunSettings, find_plugin(algorithm).Config)
        for field in dataclasses.fields(kind)
        if field.init and field.name != "backend"
    ]
    return [f"--{name.replace('_', '-')}" for name in [*names, "from", "run-dir"]]


def training(draw: random.Random) -> list[str]:
    algorithm = draw.choice([*TASKS, *TASKS, draw.choice(WORDS)])
    task = TASKS.get(algorithm, "CartPole-v1") if draw.random() < 0.9 else draw.choice(WORDS)
    line = ["train", algorithm, task, *SMALL]
    if algorithm in OFF_POLICY:
        line += REPLAY
    known = options_of(algorithm if algorithm in TASKS else "trpo")
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        option = draw.choice(known)
        line.append(draw.choice([option] * 20 + [option[:-1], f"{option}=", f"--no-{option[2:]}"]))
        line += words(draw, draw.choice([0, 1, 1, 1, 1, 1, 1, 2]))
    return line


def acting(draw: random.Random) -> list[str]:
    command = draw.choice(list(OPTIONS))
    place = "run" if draw.random() < 0.8 else draw.choice(WORDS)
    line = [command] if command == "list" else [command, place]
    if command == "export":
        line.append(draw.choice(["policy.onnx", "x", *words(draw, 1)]))
    if command in ("plot", "compare"):
        line += draw.choices(["run"] * 50 + WORDS, k=draw.randrange(3))
    if command in ("evaluate", "watch"):
        line += ["--episodes", "1", "--step-limit", "3"]
    if command == "watch":
        line += ["--out", draw.choice(["film.gif", "film.mp4", "missing/film.gif", "film"])]
    for option in draw.sample(OPTIONS[command], k=min(len(OPTIONS[command]), draw.randrange(3))):
        values = draw.choice([words(draw, 1), [], ["best"], ["last"]])
        if option in ("--episodes", "--step-limit") and any(len(v) > 3 for v in values):
            continue  # so many would be played
        line += [option, *values]
    return line


def command_line(draw: random.Random) -> list[str]:
    kind = draw.random()
    if kind < 0.05:
        return draw.choices(WORDS, k=draw.randrange(4))
    line = training(draw) if kind < 0.6 else acting(draw)
    if draw.random() < 0.05:
        del line[draw.randrange(len(line))]
    return line


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    settings: dict[str, Any] = {
        "total_steps": 12, "environments": 2, "rollout_length": 3, "hidden_sizes": (2,),
        "evaluation_episodes": 1, "evaluation_step_limit": 5,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("original") / "run"
    train("trpo", "CartPole-v1", run_dir=path, **settings)
    return path


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_no_command_line_ends_in_a_traceback(count, original, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "run")

    def late(number, frame):
        raise AssertionError(f"not ended within {SECONDS} seconds")

    monkeypatch.setattr(sys, "path", list(sys.path))
    before = signal.signal(signal.SIGALRM, late)
    draw = random.Random(count)
    statuses = []
    try:
        for _ in range(count):
            line = command_line(draw)
            # As rl_plugins.__main__ and Python itself set them.
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
            sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
            signal.alarm(SECONDS)
            try:
                status: Any = main(line)
            except SystemExit as stop:
                status = "help" if stop.code in (0, None) else stop.code
            except BaseException as error:
                raise AssertionError(f"{line}: {error!r}") from error
            signal.alarm(0)
            err = capsys.readouterr().err
            assert status in (0, 1, 2, "help"), line
            if status in (1, 2):
                assert err.startswith("rl-plugins: "), line
                assert err.count("\n") == 1, line
                assert "Traceback" not in err, line
            statuses.append(status)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert statuses.count(0) > count // 10  # not all is wrong
    assert statuses.count(2) > count // 5

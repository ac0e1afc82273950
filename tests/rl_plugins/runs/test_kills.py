"""A run that is killed, anywhere and more than once, is the run that was not, once resumed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl_plugins import resume, train
from rl_plugins.runs.checkpoint import load_checkpoint
from tests.rl_plugins.runs.same_runs import assert_same, untimed

SETTINGS: dict[str, Any] = {
    "total_steps": 240, "environments": 2, "rollout_length": 20, "hidden_sizes": (4,), "seed": 3,
    "checkpoints": 2, "evaluations": 2, "evaluation_episodes": 2, "evaluation_step_limit": 30,
}  # fmt: skip
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "trpo": ("trpo", "CartPole-v1", SETTINGS),
    "td3": ("td3", "Pendulum-v1",
            {**SETTINGS, "learning_starts": 40, "batch_size": 8, "buffer_size": 200}),
}  # fmt: skip
TRIES = 400

# Reads one JSON object a line and answers each with one line. Every attempt is a process of its
# own, forked after the imports, which take seconds, and ends at a moment or beside a write.
DRIVER = """
import json, os, signal, sys, tempfile, time
import rl_plugins, rl_plugins.runs.tables as tables

with tempfile.TemporaryDirectory() as place:  # imports what a run imports, on the way
    for name, task in (("trpo", "CartPole-v1"), ("td3", "Pendulum-v1")):
        rl_plugins.train(name, task, run_dir=f"{place}/{name}", total_steps=8, environments=1,
                         rollout_length=4, hidden_sizes=(2,), evaluation_episodes=1)

def dies_at(point):
    seen = 0

    def pass_point():
        nonlocal seen
        seen += 1
        if seen == point:
            os._exit(137)

    def wrap(owner, name):
        plain = getattr(owner, name)

        def wrapped(*given, **named):
            pass_point()
            result = plain(*given, **named)
            pass_point()
            return result

        setattr(owner, name, wrapped)

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "link"), (tables.Table, "append")):
        wrap(owner, name)
    return lambda: seen

for line in sys.stdin:
    order = json.loads(line)
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        count = dies_at(order["point"])
        try:
            if order["resumes"]:
                rl_plugins.resume(order["run_dir"])
            else:
                rl_plugins.train(order["algorithm"], order["task"], run_dir=order["run_dir"],
                                 **order["settings"])
            with open(order["passed"], "w") as file:
                file.write(str(count()))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if order["seconds"] is not None:
        time.sleep(order["seconds"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps({"code": code, "seconds": time.perf_counter() - started}), flush=True)
"""


def sizes(quick, many):
    return pytest.mark.parametrize("count", [quick, pytest.param(many, marks=pytest.mark.slow)])


class Driver:
    """Runs that are killed, in processes of their own."""

    def __init__(self, passed: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.passed = passed
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def run(self, case, path, *, point=0, seconds=None, resumes=False) -> dict[str, Any]:
        """Train or resume until the point or the moment, if there is one; the exit code and time.

        A run that has ended by itself before the moment may still be killed while it exits.
        """
        algorithm, task, settings = CASES[case]
        order = {"algorithm": algorithm, "task": task, "settings": settings, "run_dir": str(path),
                 "point": point, "seconds": seconds, "resumes": resumes,
                 "passed": str(self.passed)}  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["code"] in (0, 137, -9), answer
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    made = Driver(tmp_path_factory.mktemp("driver") / "passed")
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(driver, tmp_path_factory):
    """Uninterrupted runs: their directory, the seconds and the points they take."""
    place = tmp_path_factory.mktemp("whole")
    found = {}
    for case in CASES:
        answer = driver.run(case, place / case)
        assert answer["code"] == 0
        found[case] = (place / case, answer["seconds"], int(driver.passed.read_text()))
    return found


def assert_same_run(first, second):
    for name in ("progress.csv", "evaluations.csv"):
        assert untimed(first / name) == untimed(second / name)
    for which in ("checkpoint.pt", "best.pt"):
        ours, theirs = load_checkpoint(first, which), load_checkpoint(second, which)
        del ours["seconds"], theirs["seconds"]
        assert_same(ours, theirs)
    assert json.loads((first / "outcome.json").read_text())["outcome"] == "finished"
    # A run that was killed while it drew its last picture has nothing left to do.
    assert not [left for left in first.glob("*.part") if not left.name.startswith(".curve.png")]


def finish(case, path):
    """Go on, as somebody would who finds the directory."""
    algorithm, task, settings = CASES[case]
    if not (path / "config.json").exists():
        train(algorithm, task, run_dir=path, **settings)
    elif not (path / "outcome.json").exists():
        resume(path)


@sizes(2, 40)
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_and_resumed(case, count, driver, whole, tmp_path):
    directory, seconds, _ = whole[case]
    draw = random.Random(count)
    for number in range(count):
        path = tmp_path / str(number)
        driver.run(case, path, seconds=draw.uniform(0, seconds))
        while draw.random() < 0.5 and (path / "config.json").exists():  # the resumption too
            if (path / "outcome.json").exists():
                break
            driver.run(case, path, seconds=draw.uniform(0, seconds), resumes=True)
        finish(case, path)
        assert_same_run(path, directory)


@sizes(3, TRIES)
@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_write_and_resumed(case, count, driver, whole, tmp_path):
    directory, _, points = whole[case]
    assert 40 < points < TRIES
    draw = random.Random(count)
    chosen = range(1, points + 1)
    for point in chosen if count > points else sorted(draw.sample(chosen, count)):
        path = tmp_path / str(point)
        assert driver.run(case, path, point=point)["code"] == 137
        finish(case, path)
        assert_same_run(path, directory)


@sizes(1, TRIES)
def test_a_resumption_killed_at_every_write_is_resumed(count, driver, whole, tmp_path):
    directory, _, points = whole["trpo"]
    draw = random.Random(count)
    for number in range(min(count, points)):
        path = tmp_path / str(number)
        driver.run("trpo", path, point=points // 2)
        driver.run("trpo", path, point=draw.randint(1, points // 2 + 8), resumes=True)
        finish("trpo", path)
        assert_same_run(path, directory)


def test_killed_before_its_settings_are_written_it_may_be_trained_again(driver, whole, tmp_path):
    directory, _, _ = whole["trpo"]
    path = tmp_path / "run"
    for point in (1, 3):  # before and after the fsync of its part, and before its move
        assert driver.run("trpo", path, point=point)["code"] == 137
        assert not (path / "config.json").exists()
    assert driver.run("trpo", path)["code"] == 0
    assert_same_run(path, directory)

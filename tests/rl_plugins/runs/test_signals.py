"""A signal ends a run in good order, and it goes on from there or from the checkpoint before."""

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

import rl_plugins
from rl_plugins import UsageError, resume, train
from rl_plugins.runs import RunOutcome, callbacks
from rl_plugins.runs.checkpoint import load_checkpoint
from rl_plugins.runs.interruption import signals_as_request
from tests.rl_plugins.runs.same_runs import untimed


@pytest.fixture(autouse=True)
def _not_ignored():
    """As for a program in the foreground; a shell has those in the background ignore Ctrl-C."""
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


QUICK: dict[str, Any] = {
    "total_steps": 1200, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "evaluations": 0, "evaluation_episodes": 2, "checkpoints": 1,
}  # fmt: skip


class Ask(callbacks.Callback):
    """Sends a signal once so many steps are taken."""

    def __init__(self, number, steps):
        self.number, self.steps = number, steps

    def on_update(self, moment):
        if moment.steps == self.steps:
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    return train("trpo", "CartPole-v1", run_dir=path, **QUICK).directory


@pytest.mark.slow
def test_a_signal_ends_the_program_with_its_own_status(tmp_path):
    path = tmp_path / "x"
    process = subprocess.Popen(
        [sys.executable, "-m", "rl_plugins", "train", "trpo", "CartPole-v1", "--total-steps",
         "100000000", "--evaluations", "0", "--checkpoints", "0", "--run-dir", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path / "progress.csv").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    assert f"go on: rl-plugins resume {path}" in " ".join(output.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_writes_an_extra_checkpoint_and_an_outcome(number, tmp_path):
    run = train(
        "trpo", "CartPole-v1", run_dir=tmp_path / "x", callbacks=[Ask(number, 300)], **QUICK
    )
    assert (run.outcome, run.signal, run.steps) == (RunOutcome.INTERRUPTED, number, 300)
    path = run.directory
    assert json.loads((path / "outcome.json").read_text())["outcome"] == "interrupted"
    assert load_checkpoint(path, "interruption.pt")["steps"] == 300
    assert not (path / "checkpoint.pt").exists()
    assert rl_plugins.load(path).act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    with pytest.raises(UsageError, match="has finished"):
        resume(path, from_interruption=True, total_steps=300)
    again = resume(path, from_interruption=True, total_steps=700)
    assert (again.outcome, again.steps) == (RunOutcome.FINISHED, 700)


@pytest.mark.parametrize("steps", [300, 900])  # before and behind the checkpoint at 600
def test_unasked_a_run_goes_on_from_the_planned_checkpoint_bitwise(steps, whole, tmp_path):
    ask = Ask(signal.SIGTERM, steps)
    run = train("trpo", "CartPole-v1", run_dir=tmp_path / "x", callbacks=[ask], **QUICK)
    assert resume(run.directory).outcome is RunOutcome.FINISHED
    for name in ("progress.csv", "evaluations.csv"):
        assert untimed(run.directory / name) == untimed(whole / name)


def test_what_the_caller_ignores_stays_ignored(tmp_path):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ask = Ask(signal.SIGHUP, 300)
        run = train("trpo", "CartPole-v1", run_dir=tmp_path / "x", callbacks=[ask], **QUICK)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.outcome is RunOutcome.FINISHED


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_output(tmp_path):
    path = tmp_path / "x"
    process = subprocess.Popen(
        [sys.executable, "-m", "rl_plugins", "train", "trpo", "CartPole-v1", "--total-steps",
         "3000", "--run-dir", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert json.loads((path / "outcome.json").read_text())["outcome"] == "finished"


def test_handlers_are_the_callers_again():
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with signals_as_request() as request:
        signal.raise_signal(signal.SIGTERM)
        assert (request.is_set(), request.number) == (True, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {s: signal.getsignal(s) for s in before} == before

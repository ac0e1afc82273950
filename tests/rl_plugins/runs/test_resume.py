"""A run that was killed and resumed is the run that was not."""

import json
from typing import Any

import pytest
import torch

from rl_plugins import UsageError, train
from rl_plugins.errors import DamageWarning
from rl_plugins.plugin import find_plugin
from rl_plugins.runs import RunOutcome, resume
from rl_plugins.runs.directory import RunDirectory, load_checkpoint
from tests.rl_plugins.runs.same_runs import assert_same, untimed

ON_POLICY: dict[str, Any] = {
    "total_steps": 800, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "checkpoints": 2, "evaluations": 1, "evaluation_episodes": 2, "seed": 3,
}  # fmt: skip
OFF_POLICY = {
    **ON_POLICY, "total_steps": 400, "rollout_length": 25, "learning_starts": 60, "batch_size": 16,
    "buffer_size": 300,
}  # fmt: skip
CASES = [
    ("trpo", "CartPole-v1", {**ON_POLICY, "normalise_rewards": True}),
    ("npg", "Pendulum-v1", ON_POLICY),
    ("ppo", "CartPole-v1", {**ON_POLICY, "objective": "penalty", "critic": "adam",
                            "learning_rate_steps": 1000}),
    ("ppo", "Pendulum-v1", {**ON_POLICY, "memory_size": 4}),
    ("a2c", "CartPole-v1", ON_POLICY),
    ("ddpg", "Pendulum-v1", {**OFF_POLICY, "noise": "ornstein-uhlenbeck"}),
    ("td3", "Pendulum-v1", OFF_POLICY),
]  # fmt: skip


@pytest.fixture
def killed_at(monkeypatch):
    """Make an algorithm's n-th update raise, once."""

    def arrange(algorithm, update):
        plugin = find_plugin(algorithm)
        original, calls = plugin.update, []

        def update_or_die(self, batch):
            calls.append(batch)
            if len(calls) == update:
                raise RuntimeError("killed")
            return original(self, batch)

        monkeypatch.setattr(plugin, "update", update_or_die)

    return arrange


@pytest.mark.parametrize(("algorithm", "task", "settings"), CASES)
def test_a_resumed_run_writes_what_the_run_would_have_written(
    algorithm, task, settings, tmp_path, killed_at
):
    whole = train(algorithm, task, run_dir=tmp_path / "whole", **settings)
    killed_at(algorithm, 7)  # between the second checkpoint, after 5 of 8 updates, and the end
    with pytest.raises(RuntimeError, match="killed"):
        train(algorithm, task, run_dir=tmp_path / "part", **settings)
    assert load_checkpoint(tmp_path / "part")["updates"] == 5
    resumed = resume(tmp_path / "part")

    assert resumed.outcome is RunOutcome.FINISHED
    assert resumed.steps == whole.steps
    assert resumed.evaluation == whole.evaluation
    for name in ("progress.csv", "evaluations.csv"):
        assert untimed(tmp_path / "part" / name) == untimed(tmp_path / "whole" / name)
    first, second = (load_checkpoint(tmp_path / name) for name in ("whole", "part"))
    del first["seconds"], second["seconds"]
    assert_same(first, second)


def test_a_finished_run_is_not_resumed_and_one_without_a_checkpoint_begins_again(
    whole, tmp_path, killed_at
):
    with pytest.raises(UsageError, match=r"has finished.*--total-steps"):
        resume(whole.directory)
    killed_at("trpo", 1)
    with pytest.raises(RuntimeError, match="killed"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "young", **ON_POLICY)
    resume(tmp_path / "young")
    for name in ("progress.csv", "evaluations.csv"):
        assert untimed(tmp_path / "young" / name) == untimed(whole.directory / name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train("trpo", "CartPole-v1", run_dir=tmp_path_factory.mktemp("a") / "x", **ON_POLICY)


@pytest.fixture
def part(tmp_path, killed_at):
    """A run that was killed in its seventh update, two after its last checkpoint."""
    killed_at("trpo", 7)
    with pytest.raises(RuntimeError, match="killed"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "part", **ON_POLICY)
    return tmp_path / "part"


@pytest.mark.parametrize("torn", ["7", "7,7", "7,700", "7,700,acc", "7,700,\r", "\x00\x00"])
def test_a_row_that_a_crash_cut_off_is_dropped(torn, whole, part):
    with (part / "progress.csv").open("a") as file:
        file.write(torn)
    with (part / "evaluations.csv").open("a") as file:
        file.write(torn)
    (part / "checkpoint.pt.part").write_bytes(b"half of one")
    resume(part)
    for name in ("progress.csv", "evaluations.csv"):
        assert untimed(part / name) == untimed(whole.directory / name)
    assert not list(part.glob("*.part"))


def test_a_run_may_be_killed_and_resumed_many_times(whole, part, monkeypatch):
    plugin = find_plugin("trpo")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(plugin, "update", lambda self, batch: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                resume(part)
    resume(part)
    assert untimed(part / "progress.csv") == untimed(whole.directory / "progress.csv")


def test_a_directory_that_another_process_writes_is_not_resumed(part):
    before = (part / "progress.csv").read_bytes()
    running = RunDirectory(part, after=10_000)
    with running, pytest.raises(UsageError, match="another process is writing"):
        resume(part)
    assert (part / "progress.csv").read_bytes() == before
    assert resume(part).outcome is RunOutcome.FINISHED


def edit(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["config"].update(momentum=1),
            "of another version.*unknown setting 'momentum'",
        ),
        (lambda c: c["run"].update(environments="8"), "environments must be a int, got '8'"),
        (lambda c: c.update(algorithm="gone"), "unknown algorithm 'gone'"),
        (lambda c: c.update(run=[]), "holds no run"),
        (lambda c: c["config"].update(hidden_sizes=[4]), "has changed since.*--accept-config"),
    ],
)
def test_a_run_of_another_version_is_refused_in_one_line(change, message, part):
    edit(part / "config.json", change)
    with pytest.raises(UsageError, match=message) as error:
        resume(part)
    assert "\n" not in str(error.value)


def test_rows_of_other_columns_are_not_mixed(part):
    table = (part / "progress.csv").read_text()
    (part / "progress.csv").write_text(table.replace("max_kl", "bound", 1))
    with pytest.raises(UsageError, match="other columns than the run would write now"):
        resume(part)


@pytest.mark.parametrize("content", [[1], {"agent": {}}])
def test_a_file_that_is_no_checkpoint_is_refused(content, part):
    for name in ("checkpoint.pt", "checkpoint-before.pt"):
        torch.save(content, part / name)
    with pytest.raises(UsageError, match="is no checkpoint of a run"):
        resume(part)


def test_a_checkpoint_cut_off_anywhere_is_refused(part):
    content = (part / "checkpoint.pt").read_bytes()
    (part / "checkpoint-before.pt").unlink()
    for length in [*range(0, 200, 40), *range(200, len(content) - 1, len(content) // 20)]:
        (part / "checkpoint.pt").write_bytes(content[:length])
        with pytest.raises(UsageError, match=r"checkpoint\.pt is damaged"):
            resume(part)


def test_the_one_before_a_damaged_one_is_used_and_named(whole, part):
    content = bytearray((part / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (part / "checkpoint.pt").write_bytes(content)
    with pytest.warns(DamageWarning, match=r"checkpoint\.pt is damaged.*of step 200"):
        resume(part)
    assert untimed(part / "progress.csv") == untimed(whole.directory / "progress.csv")
    assert untimed(part / "evaluations.csv") == untimed(whole.directory / "evaluations.csv")


def test_files_that_cannot_be_written_are_named(part):
    (part / "progress.csv").unlink()
    (part / "progress.csv").mkdir()
    with pytest.raises(UsageError, match=r"progress\.csv is no regular file"):
        resume(part)
    (part / "progress.csv").rmdir()
    assert resume(part).outcome is RunOutcome.FINISHED  # the refusal left no lock behind

"""Files of a run that a bad disk or a stranger changed: refused in a sentence, or harmless."""

import contextlib
import copy
import csv
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rl_plugins import UsageError, evaluate_run, load, resume, train
from rl_plugins.cli import main
from rl_plugins.runs.checkpoint import _checksum, load_checkpoint
from tests.rl_plugins.runs.same_runs import assert_same

TINY: dict[str, Any] = {
    "total_steps": 60, "environments": 2, "rollout_length": 10, "hidden_sizes": (4,),
    "checkpoints": 1, "evaluations": 1, "evaluation_episodes": 1, "evaluation_step_limit": 20,
}  # fmt: skip
REPLAY: dict[str, Any] = {
    **TINY, "learning_starts": 20, "batch_size": 4, "buffer_size": 64,
}  # fmt: skip
DEEP = '{"a": ' * 5_000 + "1" + "}" * 5_000
SECONDS = 30


def sizes(quick, many):
    """The same test with few examples, and with many among the slow tests."""
    return pytest.mark.parametrize("count", [quick, pytest.param(many, marks=pytest.mark.slow)])


@contextlib.contextmanager
def bounded(seconds: int = SECONDS) -> Iterator[None]:
    """Within the block, a call that hangs is a failure."""

    def late(number, frame):
        raise AssertionError(f"not ended within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A finished run of each kind, which no test changes."""
    place = tmp_path_factory.mktemp("originals")
    train("trpo", "CartPole-v1", run_dir=place / "trpo", **TINY)
    train("td3", "Pendulum-v1", run_dir=place / "td3", **REPLAY)
    train("ppo", "CartPole-v1", run_dir=place / "ppo", epochs=1, **TINY)
    for name in ("trpo", "td3", "ppo"):
        (place / name / "checkpoint-before.pt").unlink()
    return place


@pytest.fixture
def run(originals, tmp_path):
    shutil.copytree(originals / "trpo", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that anybody could have put beside the run."""
    place = tmp_path / "path"
    place.mkdir()
    for name in ("evil", " evil", "évil"):
        (place / f"{name}.py").write_text("imported = True\n")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    return "evil"


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """The content with one kind of damage."""
    changed = bytearray(content)
    place = draw.randrange(max(1, len(content)))
    kind = draw.choice(
        ["bit", "bits", "cut", "extend", "zeros", "noise", "move", "remove", "empty"]
    )
    length = draw.choice([1, 4, 64, 512])
    if kind == "bit":
        changed[place] ^= 1 << draw.randrange(8)
    elif kind == "bits":
        for _ in range(20):
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "extend":
        changed += draw.randbytes(length)
    elif kind == "zeros":
        changed[place : place + length] = bytes(length)
    elif kind == "noise":
        changed[place : place + length] = draw.randbytes(length)
    elif kind == "move":
        part = changed[place : place + length]
        other = draw.randrange(len(content))
        changed[other : other + len(part)] = part
    elif kind == "remove":
        del changed[place : place + length]
    else:
        changed = bytearray(draw.choice([b"", b"\0", b"PK\x05\x06" + bytes(18)]))
    return bytes(changed)


@sizes(50, 1_000)
@pytest.mark.parametrize("algorithm", ["trpo", "td3"])
def test_a_changed_checkpoint_is_refused_or_holds_the_same(algorithm, count, originals, tmp_path):
    run = shutil.copytree(originals / algorithm, tmp_path / "run")
    content = (run / "checkpoint.pt").read_bytes()
    whole = load_checkpoint(run)
    draw = random.Random(count)
    refused = 0
    for _ in range(count):
        (run / "checkpoint.pt").write_bytes(mutated_bytes(content, draw))
        try:
            with bounded():
                found = load_checkpoint(run)
        except UsageError:
            refused += 1
            with pytest.raises(UsageError):
                load(run)
        else:
            assert_same(whole, found)
    assert refused > count // 2


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a state."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [pair for key in keys for pair in ((value, key), *places(value[key]))]


ODD: list[Any] = [
    True, False, None, -1, 0, 2**62 + 1, 2**63, 10**400, 1.5, math.nan, math.inf, "", "agent",
    [], {}, [[]], {"a": 1}, {0: 0}, b"bytes",
]  # fmt: skip


def mutated_state(state: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A checkpoint with one value replaced, or left out."""
    state = copy.deepcopy(state)
    every = places(state)
    container, key = draw.choice(every)
    value = container[key]
    if isinstance(value, torch.Tensor) and draw.random() < 0.8:
        others = [c[k] for c, k in every if isinstance(c[k], torch.Tensor) and c[k] is not value]
        container[key] = draw.choice(
            [
                torch.full_like(value, math.nan if value.is_floating_point() else 1),
                value.to(torch.float64),
                value.to(torch.complex64),
                value.to(torch.int8),
                value.reshape(-1)[:-1].clone(),
                value[None],
                torch.zeros(()).expand(2**40),
                draw.choice(others),
                value.to_sparse() if value.is_floating_point() else value + 1,
                value + 1,
            ]
        )
    elif draw.random() < 0.3:
        del container[key]
    else:
        container[key] = draw.choice(ODD)
    return state


@sizes(50, 1_000)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_an_edited_state_is_refused(count, originals, run):
    whole = load_checkpoint(run)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    draw = random.Random(count)
    for _ in range(count):
        edited = mutated_state(saved, draw)
        torch.save(edited, run / "checkpoint.pt")
        try:
            with bounded():
                found = load_checkpoint(run)
        except UsageError:
            continue
        assert_same(whole, found)


@sizes(20, 1_000)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Casting complex")
@pytest.mark.parametrize("algorithm", ["trpo", "td3"])
def test_an_edited_state_with_a_checksum_of_its_own_is_no_traceback(
    algorithm, count, originals, tmp_path
):
    """The sum is no signature. What a stranger signed anew is refused in a sentence or obeyed."""
    run = shutil.copytree(originals / algorithm, tmp_path / "run")
    (run / "outcome.json").unlink()  # else it has finished, and is not gone on with
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    draw = random.Random(count)
    for number in range(count):
        edited = mutated_state(saved, draw)
        with contextlib.suppress(Exception):
            edited["checksum"] = _checksum(edited)
        torch.save(edited, run / "checkpoint.pt")
        with bounded(), contextlib.suppress(UsageError):
            load(run)
        if number % 4 == 0:
            shutil.copytree(run, tmp_path / str(number))
            with bounded(), contextlib.suppress(UsageError):
                resume(tmp_path / str(number))
            shutil.rmtree(tmp_path / str(number))


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(run):
    with zipfile.ZipFile(run / "checkpoint.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (folder,) = {name.split("/")[0] for name in parts}
    with zipfile.ZipFile(run / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        with archive.open(f"{folder}/data/999", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(2**20))
    assert (run / "checkpoint.pt").stat().st_size < 2**20
    with pytest.raises(UsageError, match="holds compressed parts"):
        load(run)


VALUES: list[Any] = [
    None, True, False, -1, 0, 3, 2**53, 2**63, 10**400, -(10**400), 1e308, -1e308, 5e-324, math.nan,
    math.inf, "", " ", "évil", "\ud800", "x" * 10_000, "a\nb", "../..", "evil", "evil:X-v0",
    "evil:Adam", " evil:Adam", "evil.:Adam", "évil:Adam", ":Adam", "evil:", "no:such", [], [[]],
    ["evil:Adam"], [2**53], [None], {}, {"evil:X": "evil:X"}, {"id": "evil:X-v0"}, "[link]",
]  # fmt: skip
NAMES = ["algorithm", "task", "tuned", "run", "config", "versions", "object", "from"]
FIELDS = ["optimizer", "wrappers", "callbacks", "imports", "env_kwargs", "backend", "noise",
          "total_steps", "seed", "critic", "max_kl", "__class__", "\ud800", ""]  # fmt: skip


def mutated_config(text: str, draw: random.Random) -> bytes:
    """A config.json with one change, of a value or of the bytes."""
    kind = draw.random()
    if kind < 0.2:
        return mutated_bytes(text.encode(), draw)
    if kind < 0.25:
        return draw.choice(
            [DEEP, "[" * 100_000, f'{{"task": {DEEP}}}', "1" * 5_000, "null", "[]", '"x"', "{}"]
        ).encode()
    config = json.loads(text)
    if kind < 0.4:
        config[draw.choice(NAMES)] = draw.choice(VALUES)
    elif kind < 0.6:
        config[draw.choice(["run", "config"])][draw.choice(FIELDS)] = draw.choice(VALUES)
    elif kind < 0.65:
        value: Any = 1
        for _ in range(draw.choice([10, 90, 110, 500, 700])):
            value = [value] if draw.random() < 0.5 else {"a": value}
        config[draw.choice(NAMES)] = value
    else:
        container, key = draw.choice(places(config))
        if draw.random() < 0.15:
            del container[key]
        else:
            container[key] = draw.choice(VALUES)
    return json.dumps(config).encode()


def checked_command(arguments, capsys, allowed=(0, 2)) -> int:
    """The status of a command that ends without a traceback, in one line where it fails."""
    # As rl_plugins.__main__ and Python itself set them; pytest's refuse what they cannot encode.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with bounded():
        status = main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert status in allowed, err
    if status:
        assert err.startswith("rl-plugins: ")
        assert err.count("\n") == 1
    return status


@sizes(50, 1_000)
@pytest.mark.parametrize("accept", [False, True])
def test_a_changed_config_is_refused_or_harmless(accept, count, run, evil, capsys):
    text = (run / "config.json").read_text()
    draw = random.Random(2 * count + accept)
    more = ["--accept-config"] if accept else []
    for number in range(count):
        content = mutated_config(text, draw)
        (run / "config.json").write_bytes(content)
        with bounded():
            if number % 2:
                checked_command(
                    ["evaluate", run, "--episodes", 1, "--step-limit", 5, *more], capsys
                )
            else:
                with contextlib.suppress(UsageError):
                    load(run, accept_config=accept)
            if number % 5 == 0:
                with contextlib.suppress(UsageError):
                    evaluate_run(run, episodes=1, step_limit=5, accept_config=accept)
            if not accept:
                checked_command(["resume", run], capsys)
                checked_command(["compare", run], capsys)
            elif number % 20 == 0:
                checked_command(["plot", run, "--out", run.parent / "p.png"], capsys)
        assert evil not in sys.modules, content
    (run / "config.json").write_text(text)
    load(run)


@pytest.mark.parametrize("has_checkpoint", [True, False])
@pytest.mark.parametrize(
    "value", ["evil:Adam", " evil:Adam", "evil:Adam ", "évil:Adam", "evil:A:B"]
)
@pytest.mark.parametrize("setting", ["optimizer", "body"])
@pytest.mark.parametrize("where", ["run", "config"])
def test_no_setting_of_a_file_imports_a_module(
    where, setting, value, has_checkpoint, originals, tmp_path, evil
):
    """Also before the first checkpoint, where no digest says that the settings were changed."""
    run = shutil.copytree(originals / "ppo", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "outcome.json").unlink()
    if not has_checkpoint:
        for name in ("checkpoint.pt", "best.pt"):
            (run / name).unlink()
    del config["config"][setting]
    changed = {**config, where: {**config[where], setting: value}}
    cases = [changed]
    cases += [{**config, "task": "evil:X-v0"}, {**config, "algorithm": "evil:X"}]
    for name, named in (("wrappers", "evil:X"), ("imports", "evil"), ("callbacks", "evil:X")):
        cases.append({**config, "run": {**config["run"], name: [named]}})
    for number, case in enumerate(cases):
        (run / "config.json").write_text(json.dumps(case))
        for call in (load, evaluate_run, resume):
            # The second names the task's module, which `load` has no need of.
            must = number < 3 and not (number == 1 and call is load)
            refused = pytest.raises(UsageError)
            with refused if must else contextlib.suppress(UsageError), bounded():
                call(run, accept_config=True)
            assert not {evil, "évil", " evil"} & sys.modules.keys(), (call, case)


CELLS = ["", "nan", "inf", "-inf", "1e400", "1e308", "-1e308", "x", "1" * 5_000, "-1", "0", "1.5",
         "٣", "²", "\0", "1\n2", '"', "a,b", "1_0", " 7 ", "True", "9" * 200_000]  # fmt: skip


def mutated_table(text: str, draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.3:
        return mutated_bytes(text.encode(), draw)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    row = draw.randrange(len(rows))
    if kind < 0.7:
        rows[row][draw.randrange(len(rows[row]))] = draw.choice(CELLS)
    elif kind < 0.75:
        rows[row] = rows[row][: draw.randrange(len(rows[row]))]
    elif kind < 0.8:
        rows.insert(row, draw.choice(rows))
    elif kind < 0.85:
        del rows[row]
    elif kind < 0.9:
        draw.shuffle(rows)
    elif kind < 0.95:
        column = draw.randrange(len(rows[0]))
        for each in rows:
            del each[column]
    else:
        column = draw.randrange(len(rows[0]))
        for each in rows[1:]:
            each[column] = draw.choice(CELLS)
    changed = io.StringIO(newline="")
    csv.writer(changed).writerows(rows)
    return changed.getvalue().encode()


@sizes(25, 1_000)
@pytest.mark.parametrize("name", ["progress.csv", "evaluations.csv"])
def test_a_changed_table_is_refused_or_harmless(name, count, run, tmp_path, capsys):
    text = (run / name).read_text()
    (run / "outcome.json").unlink()
    draw = random.Random(count)
    other = shutil.copytree(run, tmp_path / "other")
    for number in range(count):
        (run / name).write_bytes(mutated_table(text, draw))
        checked_command(["compare", run], capsys)
        checked_command(["compare", run, other], capsys)
        if number % 20 == 0:
            checked_command(["plot", run, "--out", tmp_path / "p.png"], capsys)
            checked_command(["plot", run, other, "--out", tmp_path / "p.png"], capsys)
            checked_command(["compare", run, other, "--out", tmp_path / "p.png"], capsys)
        if number % 20 == 10:
            copied = shutil.copytree(run, tmp_path / str(number))
            checked_command(["resume", copied], capsys)
            shutil.rmtree(copied)


def test_rows_of_no_finite_number_are_refused_or_left_out(run, tmp_path, capsys):
    rows = list(csv.reader(io.StringIO((run / "evaluations.csv").read_text(), newline="")))
    for column in ("steps", "mean_return", "deviation"):
        for cell in ("nan", "inf", "-inf", "1e308", "-1e308", "1e-320"):
            changed = [list(row) for row in rows]
            for row in changed[1:]:
                row[rows[0].index(column)] = cell
            with (run / "evaluations.csv").open("w", newline="") as file:
                csv.writer(file).writerows(changed)
            for command in ("plot", "compare"):
                checked_command([command, run, "--out", tmp_path / "p.png"], capsys)


KINDS = ["link", "dangling", "pipe", "directory"]
PLANTED = ["config.json", "checkpoint.pt", "checkpoint-before.pt", "best.pt", "progress.csv",
           "evaluations.csv", "outcome.json", "curve.png", "x.part", "checkpoint.pt.part",
           ".progress.csv-0.part"]  # fmt: skip
SOON = [("config.json", "pipe"), ("checkpoint.pt", "link"), ("checkpoint.pt", "pipe"),
        ("progress.csv", "link"), ("evaluations.csv", "link"), ("evaluations.csv", "dangling"),
        ("x.part", "directory"), (".progress.csv-0.part", "link")]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) in SOON else pytest.mark.slow)
        for name in PLANTED
        for kind in KINDS
    ],
)
def test_nothing_is_followed_waited_for_or_changed_outside(name, kind, run, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    target = precious / "file"
    content = (run / name).read_bytes() if (run / name).is_file() else b"precious"
    if kind != "dangling":
        target.write_bytes(content)
    (run / name).unlink(missing_ok=True)
    if kind in ("link", "dangling"):
        (run / name).symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).mkdir()
    if name != "outcome.json":
        (run / "outcome.json").unlink(missing_ok=True)
    checked_command(["evaluate", run, "--episodes", 1, "--step-limit", 3], capsys)
    checked_command(["plot", run, "--out", tmp_path / "p.png"], capsys)
    checked_command(["compare", run], capsys)
    # 1: a file of the run cannot be put where a directory lies.
    allowed = (0, 1, 2) if kind == "directory" else (0, 2)
    checked_command(["resume", run], capsys, allowed)
    checked_command(["resume", run, "--total-steps", 80], capsys, allowed)
    if kind == "dangling":
        assert list(precious.iterdir()) == []
    else:
        assert target.read_bytes() == content

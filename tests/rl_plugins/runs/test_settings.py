"""Settings are what was asked for, of the type that was announced, and come back from a file."""

from __future__ import annotations

import dataclasses
import json
import math
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from rl_plugins import UsageError
from rl_plugins.plugin import find_plugin, registered_plugins
from rl_plugins.runs import RunSettings, resolve, tuned_settings
from rl_plugins.runs.directory import RunDirectory
from rl_plugins.runs.tables import _cell
from rl_plugins.settings import configure, settings_of


class Shape(Enum):
    ROUND = 1
    FLAT = 2


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True)
class Odd:
    """Everything that a third party may think of."""

    flag: bool = False
    count: int = 1
    rate: float | None = None
    either: int | str = 3
    kind: Literal["a", "b"] | None = "a"
    pair: tuple[int, str] = (1, "x")
    deep: tuple[tuple[float, ...], ...] = ((1.0, math.inf), ())
    bare: tuple = (1, "x")  # type: ignore[type-arg]
    names: list[str] = dataclasses.field(default_factory=lambda: ["x"])
    path: Path = Path("here")
    shape: Shape = Shape.ROUND
    inner: Inner = dataclasses.field(default_factory=Inner)
    maybe: Inner | None = None
    anything: Any = None
    derived: int = dataclasses.field(init=False, default=7)


OTHER = Odd(
    True, 2, 3.5, "s", None, (4, "y"), ((2.0,), (-math.inf, 1.0)), (2,), [], Path("a") / "b",
    Shape.FLAT, Inner(0.25, (3, 4)), Inner(), [1, None],
)  # fmt: skip


@pytest.mark.parametrize("config", [Odd(), OTHER])
def test_odd_settings_come_back_from_json(config):
    assert configure(Odd, json.loads(json.dumps(settings_of(config)))) == config


@pytest.mark.parametrize("name", sorted(registered_plugins()))
def test_the_settings_of_every_algorithm_come_back_from_json(name):
    plugin = find_plugin(name)
    for task in ["Pendulum-v1", *tuned_settings(name)]:
        settings = resolve(name, plugin, task, {"hidden_sizes": (3, 5), "discount": 1})
        text = json.dumps({**settings_of(settings.run), **settings_of(settings.config)})
        # Another task, so that nothing is right because the file of settings said it again.
        again = resolve(name, plugin, "none", json.loads(text))
        assert (again.run, again.config) == (settings.run, settings.config)


def test_an_infinite_setting_comes_back_from_json():
    settings = resolve("td3", find_plugin("td3"), "x", {"action_limit": math.inf})
    again = json.loads(json.dumps(settings_of(settings.config)))
    assert configure(type(settings.config), again).action_limit == math.inf


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("flag", np.True_, True),
        ("count", np.int64(5), 5),
        ("rate", np.float32(0.5), 0.5),
        ("rate", 2, 2.0),
        ("rate", None, None),
        ("pair", [1, "z"], (1, "z")),
        ("deep", [[1], [np.float64(2)]], ((1.0,), (2.0,))),
        ("path", "there", Path("there")),
        ("shape", "FLAT", Shape.FLAT),
        ("inner", {"rate": 1}, Inner(rate=1.0)),
    ],
)
def test_a_value_becomes_the_announced_type(name, given, kept):
    value = getattr(configure(Odd, {name: given}), name)
    assert value == kept
    assert type(value) is type(kept)
    json.dumps(settings_of(configure(Odd, {name: given})))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("flag", 1), ("flag", "true"), ("flag", None), ("count", True), ("count", np.True_),
        ("count", 1.0), ("count", "1"), ("rate", "0.1"), ("rate", False), ("rate", 1j),
        ("either", 1.5), ("kind", "c"), ("pair", (1,)), ("pair", (1, "x", 2)), ("pair", ("x", 1)),
        ("pair", "1x"), ("deep", (1.0,)), ("names", "x"), ("names", [1]), ("path", 1),
        ("shape", "SQUARE"), ("inner", {"rte": 1}), ("inner", {"sizes": [1.5]}), ("derived", 8),
        ("nothing", 1),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_a_usage_error(name, given):
    with pytest.raises(UsageError) as error:
        configure(Odd, {name: given})
    assert "\n" not in str(error.value)


def test_a_setting_that_json_cannot_hold_is_named_before_a_directory_is_made(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be kept in config\.json"):
        RunDirectory.create(tmp_path / "x", {"config": {"callback": print}})
    assert not (tmp_path / "x").exists()


def test_an_algorithm_may_not_redefine_a_setting_of_the_loop():
    @dataclasses.dataclass(frozen=True)
    class Config:
        seed: int = 0

    class Plugin:
        pass

    Plugin.Config = Config  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="redefines settings of the training loop"):
        resolve("x", Plugin, "y", {})  # type: ignore[arg-type]
    assert "seed" in {field.name for field in dataclasses.fields(RunSettings)}


@pytest.mark.parametrize("value", [0.1, np.float64(0.1), np.float32(0.1), 3, np.int64(3), True])
def test_a_cell_of_a_table_reads_back_as_the_number(value):
    assert str(_cell(value)) in (repr(float(value)), str(int(value)), "True")

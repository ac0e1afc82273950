"""How many files a reader opens who follows one call to its end.

    python bench/walks.py [--show NAME]

Each scenario runs under a profiler that notes every function of ours when it is entered for the
first time, in that order. ``files`` counts the files that these are in, ``stays`` the times that
the reader changes from one file to the next on the way: a function met in an earlier file takes
the reader back there. Constructors of dataclasses, which have no code to read, do not count.
bench/compare_revisions.py runs it against two revisions.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import tyro
from fixed_steps import LABELS, TARGETS, Discrete, X, network
from torch import Tensor, nn
from torch.distributions import Categorical

import natgrad
import rl_plugins
import rl_plugins.plugin
from natgrad import optim


def entered(act: Callable[[], Any], package: Any) -> list[tuple[str, str]]:
    """(file, function) of the package in the order in which they are first entered."""
    root = str(Path(package.__file__).parent)
    seen: dict[tuple[str, str, int], None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root) and code.co_name != "<module>":
            seen.setdefault((code.co_filename, code.co_name, code.co_firstlineno))

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    base = str(Path(root).parent) + "/"
    return [(file.removeprefix(base), function) for file, function, _ in seen]


def product() -> Callable[[], Any]:
    """F @ v, with the construction of F."""
    model = network()
    pi = Categorical(logits=model(X))
    return lambda: (
        natgrad.Fisher(pi, list(model.parameters()))
        @ torch.ones(sum(p.numel() for p in model.parameters()))
    )


def trpo_step() -> Callable[[], Any]:
    """The update of an agent: advantages by GAE, TRPO's step, the fit of the critic."""
    agents: list[Any] = []
    rollouts: list[Any] = []

    class Stop(Exception):
        pass

    plugin = rl_plugins.plugin.find_plugin("trpo")
    update = plugin.update

    def kept(self: Any, batch: Any) -> Any:
        agents.append(self)
        rollouts.append(batch)
        raise Stop

    plugin.update = kept  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            rl_plugins.train("trpo", "CartPole-v1", run_dir=Path(folder) / "run", total_steps=2048)
    except Stop:
        pass
    finally:
        plugin.update = update  # type: ignore[method-assign]
    return lambda: agents[0].update(rollouts[0])


def kfac_step() -> Callable[[], Any]:
    """A step that refreshes the factors."""
    model = network()
    optimizer = optim.KFAC(model, likelihood="categorical")
    nn.functional.cross_entropy(model(X), LABELS).backward()
    return optimizer.step


def levenberg_marquardt_step() -> Callable[[], Any]:
    model = network()
    optimizer = optim.LevenbergMarquardt(list(model.parameters()), method="dense")

    def residuals() -> Tensor:
        return (model(X) - TARGETS).flatten()

    return lambda: optimizer.step(residuals)


def training() -> Callable[[], Any]:
    """rl_plugins.train as far as the first rollout."""

    class Stop(Exception):
        pass

    def act() -> None:
        from rl_plugins.data.collector import RolloutCollector

        def stopped(self: Any, length: int) -> Any:
            raise Stop

        collect, RolloutCollector.collect = RolloutCollector.collect, stopped
        try:
            with tempfile.TemporaryDirectory() as folder:
                rl_plugins.train("trpo", "CartPole-v1", run_dir=Path(folder) / "run")
        except Stop:
            pass
        finally:
            RolloutCollector.collect = collect

    return act


def policy_step() -> Callable[[], Any]:
    """TRPO(policy).step on rollouts of one's own."""
    policy = Discrete()
    return lambda: rl_plugins.TRPO(policy).step(X, LABELS, TARGETS[:, 0])


SCENARIOS: dict[str, tuple[Callable[[], Callable[[], Any]], Any]] = {
    "F @ v": (product, natgrad),
    "KFAC step": (kfac_step, natgrad),
    "LevenbergMarquardt step": (levenberg_marquardt_step, natgrad),
    "TRPO step": (policy_step, rl_plugins),
    "TRPO step with critic and GAE": (trpo_step, rl_plugins),
    "train": (training, rl_plugins),
}


def main(show: str = "") -> None:
    """Print {scenario: {files, stays}} as JSON.

    Args:
        show: Part of the name of scenarios to print function by function.
    """
    counts = {}
    for name, (prepare, package) in SCENARIOS.items():
        act = prepare()
        steps = entered(act, package)
        stays = [file for file, _ in groupby(steps, key=lambda step: step[0])]
        counts[name] = {"files": len({file for file, _ in steps}), "stays": len(stays)}
        if show and show in name:
            for file, group in groupby(steps, key=lambda step: step[0]):
                print(f"{file}: {', '.join(function for _, function in group)}")
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    tyro.cli(main)

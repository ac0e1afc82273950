"""Steps per second of whole PPO runs on HalfCheetah-v5: Stable-Baselines3 and ours, in turn.

.venv/bin/python bench/ppo_throughput.py --repeats 5

The peer runs with its defaults (one environment of 2,048 steps, 10 epochs of minibatches of 64,
policy and critic together), observations and rewards normalised. Of ours, "same work" has its
layout, epochs and minibatches, for the policy and for the critic apart; the other rows change the
layout and the critic's fit. One thread; timed from the first step to the end of the last update;
set-up is left out on both sides, as are evaluations.
"""

from __future__ import annotations

import csv
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO as PeerPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rl_plugins import train
from rl_plugins.data.environments import make_environments

TASK = "HalfCheetah-v5"
BATCH = 2048
ADAM = {"critic": "adam", "critic_epochs": 10, "critic_batch_size": 64}
PEERS = {"Stable-Baselines3, 1 x 2048": 1, "Stable-Baselines3, 16 x 128": 16}
OURS: dict[str, dict[str, Any]] = {
    "ours, same work, 1 x 2048": {"environments": 1, "rollout_length": 2048, **ADAM},
    "ours, same work, 16 x 128": {"environments": 16, "rollout_length": 128, **ADAM},
    "ours, 16 x 128, Gauss-Newton critic": {"environments": 16, "rollout_length": 128},
}


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    repeats: int = 5
    """Runs of each contender, in turn."""
    steps: int = 20_480
    """Environment steps a run: 10 updates of 2,048."""
    out: Path = Path(__file__).parent / "results" / "ppo_throughput.json"
    """Where the figures go."""


def peer(seed: int, steps: int, count: int) -> float:
    environments = VecNormalize(make_vec_env(TASK, n_envs=count, seed=seed), gamma=0.99)
    model = PeerPPO(
        "MlpPolicy", environments, n_steps=BATCH // count, batch_size=64, n_epochs=10,
        learning_rate=3e-4, gamma=0.99, gae_lambda=0.95, seed=seed, device="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    environments.close()
    return float(model.num_timesteps / seconds)


def ours(seed: int, steps: int, settings: dict[str, Any]) -> float:
    with tempfile.TemporaryDirectory() as directory:
        run = train(
            "ppo", TASK, run_dir=Path(directory) / "run", seed=seed, total_steps=steps,
            evaluations=0, checkpoints=0, evaluation_episodes=1, epochs=10, batch_size=64,
            learning_rate=3e-4, **settings,
        )  # fmt: skip
        with (run.directory / "progress.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
    return float(last["steps"]) / float(last["seconds"])


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    make_environments(TASK, 1).close()  # silences MuJoCo's warnings for the peer too
    figures: dict[str, list[float]] = {name: [] for name in (*PEERS, *OURS)}
    for repeat in range(arguments.repeats):
        for name, count in PEERS.items():
            figures[name].append(peer(repeat, arguments.steps, count))
        for name, settings in OURS.items():
            figures[name].append(ours(repeat, arguments.steps, settings))

    def ratio(values: list[float], name: str) -> float:
        return statistics.median(v / b for v, b in zip(values, figures[name], strict=True))

    defaults, layout = PEERS
    rows = {
        name: {
            "steps_per_second": values,
            "median": statistics.median(values),
            "to_defaults": ratio(values, defaults),
            "to_our_layout": ratio(values, layout),
        }
        for name, values in figures.items()
    }
    packages = ("torch", "gymnasium", "mujoco", "stable-baselines3")
    record = {
        "command": f"python bench/ppo_throughput.py --repeats {arguments.repeats} "
        f"--steps {arguments.steps}",
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": 1},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "rows": rows,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")

    table = Table("contender", "steps/s", "lowest", "highest", f"to {defaults}", f"to {layout}")
    for name, row in rows.items():
        table.add_row(
            name, f"{row['median']:,.0f}", f"{min(figures[name]):,.0f}",
            f"{max(figures[name]):,.0f}", f"{row['to_defaults']:.2f}",
            f"{row['to_our_layout']:.2f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))

"""Gradient steps per second of DDPG on HalfCheetah-v5: stable-baselines3 and ours, in turn, one
thread.

    .venv/bin/python bench/ddpg_throughput.py --repeats 5

Both with one environment, hidden layers of 400 and 300 units, minibatches of 256, a gradient step
for every environment step after 1,000 of warm-up, Adam at 10⁻³, τ = 0.005, γ = 0.99 and Gaussian
noise of 0.1; ours collects 64 steps between updates, the peer 1. Timed after the warm-up, steps of
the environment and exploration included; set-up and evaluations are left out on both sides.
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

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3 import DDPG as PeerDDPG
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

from rl_plugins import train
from rl_plugins.data.environments import make_environments

TASK = "HalfCheetah-v5"
ACTIONS = 6
WARM_UP = 1000
PEER, OURS = "stable-baselines3", "ours"


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    repeats: int = 5
    """Runs of each contender, in turn."""
    steps: int = 3_000
    """Environment steps a run, 1,000 of them without a gradient step."""
    out: Path = Path(__file__).parent / "results" / "ddpg_throughput.json"
    """Where the figures go."""


def peer(seed: int, steps: int) -> float:
    environments = make_vec_env(TASK, n_envs=1, seed=seed)
    model = PeerDDPG(
        "MlpPolicy", environments, learning_rate=1e-3, buffer_size=1_000_000, batch_size=256,
        learning_starts=WARM_UP, tau=0.005, gamma=0.99, train_freq=1, gradient_steps=1,
        action_noise=NormalActionNoise(np.zeros(ACTIONS), np.full(ACTIONS, 0.1)),
        policy_kwargs={"net_arch": [400, 300]}, seed=seed, device="cpu",
    )  # fmt: skip
    model.learn(WARM_UP)
    assert model._n_updates == 0
    start = time.perf_counter()
    model.learn(steps - WARM_UP, reset_num_timesteps=False)
    seconds = time.perf_counter() - start
    environments.close()
    return float(model._n_updates / seconds)


def ours(seed: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        run = train(
            "ddpg", TASK, run_dir=Path(directory) / "run", seed=seed, total_steps=steps,
            environments=1, rollout_length=64, hidden_sizes=(400, 300), batch_size=256,
            learning_starts=WARM_UP, evaluations=0, evaluation_episodes=1, checkpoints=0,
        )  # fmt: skip
        with (run.directory / "progress.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["updates"])]
    seconds = sum(float(row["collect_seconds"]) + float(row["update_seconds"]) for row in rows)
    return sum(int(row["updates"]) for row in rows) / seconds


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    make_environments(TASK, 1).close()  # silences MuJoCo's warnings for the peer too
    figures: dict[str, list[float]] = {PEER: [], OURS: []}
    for repeat in range(arguments.repeats):
        figures[PEER].append(peer(repeat, arguments.steps))
        figures[OURS].append(ours(repeat, arguments.steps))

    ratios = [ours / peer for ours, peer in zip(figures[OURS], figures[PEER], strict=True)]
    record = {
        "command": f"python bench/ddpg_throughput.py --repeats {arguments.repeats} "
        f"--steps {arguments.steps}",
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": 1},
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "gymnasium", "mujoco", "stable-baselines3")},
        },
        "rows": {
            name: {"gradient_steps_per_second": values, "median": statistics.median(values)}
            for name, values in figures.items()
        },
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")

    table = Table("contender", "gradient steps/s, median", "lowest", "highest")
    for name, values in figures.items():
        table.add_row(
            name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}"
        )
    console = Console()
    console.print(table)
    console.print(f"ours to the peer: {record['ratio']:.2f}, median of {len(ratios)} pairs")


if __name__ == "__main__":
    main(tyro.cli(Arguments))

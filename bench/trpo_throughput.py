"""Steps per second of whole TRPO runs on HalfCheetah-v5: sb3-contrib and ours, in turn, one thread.

    make bench            or: .venv/bin/python bench/trpo_throughput.py --repeats 5

The peer runs with the settings that rl-baselines3-zoo tuned for this task (2 environments of 1,024
steps, observations and rewards normalised), and once more in our layout (16 of 128). Of ours, "same
work" does all that the peer does in either layout: its networks, batch, CG iterations, Fisher
matrix on every state, 20 epochs of Adam on minibatches of 128 for the critic. "tuned" is what
`rl-plugins train trpo HalfCheetah-v5` does. Timed from the first step to the end of the last
update; set-up is left out on both sides, as are evaluations.
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
from sb3_contrib import TRPO as PeerTRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rl_plugins import train
from rl_plugins.data.environments import make_environments

TASK = "HalfCheetah-v5"
BATCH = 2048
PEERS_WORK = {
    "cg_iterations": 25,
    "cg_tolerance": 0.0,
    "fisher_stride": 1,
    "max_kl": 0.04,
    "critic": "adam",
    "critic_epochs": 20,
    "critic_batch_size": 128,
}
PEERS = {"sb3-contrib, zoo settings": 2, "sb3-contrib, 16 x 128": 16}
OURS: dict[str, dict[str, Any]] = {
    "ours, same work, 2 x 1024": {"environments": 2, "rollout_length": 1024, **PEERS_WORK},
    "ours, same work, 16 x 128": {"environments": 16, "rollout_length": 128, **PEERS_WORK},
    "ours, tuned": {},
}


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    repeats: int = 5
    """Runs of each contender, in turn."""
    steps: int = 40_960
    """Environment steps a run: 20 updates of 2,048."""
    out: Path = Path(__file__).parent / "results" / "trpo_throughput.json"
    """Where the figures go."""


def peer(seed: int, steps: int, count: int) -> float:
    environments = VecNormalize(make_vec_env(TASK, n_envs=count, seed=seed), gamma=0.99)
    model = PeerTRPO(
        "MlpPolicy", environments, n_steps=BATCH // count, batch_size=128, learning_rate=1e-3,
        gamma=0.99, gae_lambda=0.95, cg_max_steps=25, cg_damping=0.1, target_kl=0.04,
        n_critic_updates=20, normalize_advantage=True, sub_sampling_factor=1, seed=seed,
        device="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    environments.close()
    return float(model.num_timesteps / seconds)


def ours(seed: int, steps: int, settings: dict[str, Any]) -> float:
    with tempfile.TemporaryDirectory() as directory:
        run = train(
            "trpo", TASK, run_dir=Path(directory) / "run", seed=seed, total_steps=steps,
            evaluations=0, evaluation_episodes=1, **settings,
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

    zoo, layout = PEERS
    rows = {
        name: {
            "steps_per_second": values,
            "median": statistics.median(values),
            "to_zoo_settings": ratio(values, zoo),
            "to_our_layout": ratio(values, layout),
        }
        for name, values in figures.items()
    }
    packages = ("torch", "gymnasium", "mujoco", "stable-baselines3", "sb3-contrib")
    record = {
        "command": f"python bench/trpo_throughput.py --repeats {arguments.repeats} "
        f"--steps {arguments.steps}",
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": 1},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "rows": rows,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")

    table = Table("contender", "steps/s, median", "lowest", "highest", f"to {zoo}", f"to {layout}")
    for name, row in rows.items():
        table.add_row(
            name, f"{row['median']:,.0f}", f"{min(figures[name]):,.0f}",
            f"{max(figures[name]):,.0f}", f"{row['to_zoo_settings']:.2f}",
            f"{row['to_our_layout']:.2f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))

"""Tasks of other packages, from the command line alone: train, evaluate, go on, export, act.

``make test-tasks`` runs them, in an environment of its own. A package that is missing is skipped.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import optree
import pytest

import rl_plugins
from rl_plugins.cli import main
from rl_plugins.data.environments import make_one
from rl_plugins.runs.recorded import read_run, task_of

# Their packages' own, such as deprecations, are no concern of ours.
pytestmark = [pytest.mark.tasks, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Row:
    """A task as a user names it; what evaluating and resuming it must be allowed to import."""

    package: str
    train: str
    trusts: str


ON_POLICY = "--total-steps 512 --environments 2 --rollout-length 128 --hidden-sizes 16"
OFF_POLICY = (
    "--total-steps 400 --environments 1 --learning-starts 100 --batch-size 32 --hidden-sizes 16"
)
ROWS = {
    "minigrid": Row(
        "minigrid",
        "trpo minigrid:MiniGrid-Empty-5x5-v0 --wrapper minigrid.wrappers:ImgObsWrapper",
        "minigrid",
    ),
    "atari": Row(
        "ale_py",
        "ppo ALE/Breakout-v5 --import ale_py --env-kwargs frameskip=1 --frame-stack 4 "
        "--wrapper rl_plugins.atari:Preprocessed --epochs 1 --critic adam --critic-epochs 4",
        "ale_py",
    ),
    "flappy-bird": Row(
        "flappy_bird_gymnasium",
        "a2c flappy_bird_gymnasium:FlappyBird-v0 --env-kwargs use_lidar=false",
        "flappy_bird_gymnasium",
    ),
    "pusht": Row("gym_pusht", "td3 gym_pusht:gym_pusht/PushT-v0", "gym_pusht"),
    "highway-parking": Row("highway_env", "ddpg highway_env:parking-v0", "highway_env"),
    "highway-fast": Row(
        "highway_env",
        "npg highway_env:highway-fast-v0 "
        """--env-kwargs 'config={"vehicles_count": 5, "duration": 10}'""",
        "highway_env",
    ),
    "deep-sea-treasure": Row(
        "mo_gymnasium",
        "acktr mo_gymnasium:deep-sea-treasure-v0 --wrapper mo_gymnasium.wrappers:LinearReward",
        "mo_gymnasium",
    ),
    "tetris": Row(
        "tetris_gymnasium",
        "ppo tetris_gymnasium.envs:tetris_gymnasium/Tetris --epochs 1",
        "tetris_gymnasium",
    ),
    "trading": Row(
        "gym_trading_env",
        "a2c gym_trading_env:MultiDatasetTradingEnv "
        "--env-kwargs dataset_dir=FOLDER/prices.pkl windows=4 verbose=0 initial_position=0",
        "gym_trading_env",
    ),
    "minigrid-mission": Row(
        "minigrid",
        "a2c minigrid:MiniGrid-DoorKey-5x5-v0 "
        "--wrapper minigrid.wrappers:DictObservationSpaceWrapper",
        "minigrid",
    ),
    "pusht-pixels": Row(
        "gym_pusht",
        "ppo gym_pusht:gym_pusht/PushT-v0 --env-kwargs obs_type=pixels --epochs 1 "
        "--critic adam --critic-epochs 4",
        "gym_pusht",
    ),
    # Not in the extra: the package asks for an older gymnasium, and works with ours.
    "2048": Row(
        "gymnasium_2048",
        "trpo gymnasium_2048:gymnasium_2048/TwentyFortyEight-v0",
        "gymnasium_2048",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_task_of_another_package(name, tmp_path, capsys, monkeypatch):
    row = ROWS[name]
    if find_spec(row.package) is None:
        pytest.skip(f"{row.package} is not installed")
    if name == "trading":
        write_prices(tmp_path / "prices.pkl")
    run = tmp_path / "run"
    layout = OFF_POLICY if row.train.startswith(("td3", "ddpg")) else ON_POLICY
    trust = f"--import {row.trusts}"

    def do(command):
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    do(
        f"train {row.train.replace('FOLDER', str(tmp_path))} {layout} --evaluations 1 "
        f"--evaluation-episodes 2 --evaluation-step-limit 50 --run-dir {run}"
    )
    told = json.loads(do(f"evaluate {run} {trust} --json --episodes 2 --step-limit 50"))
    assert len(told["returns"]) == 2
    assert max(told["lengths"]) <= 50
    assert told["mean_return"] == outcome(run)["mean_return"]
    steps = outcome(run)["steps"]
    do(f"resume {run} {trust} --total-steps {steps + 200}")
    assert outcome(run)["steps"] >= steps + 200
    do(f"export {run} {tmp_path / 'policy.onnx'}")

    observations = real_observations(run, row.trusts, 20)
    monkeypatch.setattr("rl_plugins.data.task.Task.make", None)  # acting makes no task
    compare(rl_plugins.load(run), tmp_path / "policy.onnx", observations)


def test_a_policy_acts_where_its_task_is_not_installed(tmp_path):
    pytest.importorskip("minigrid")
    row = ROWS["minigrid"]
    run = tmp_path / "run"
    assert main(shlex.split(f"train {row.train} {ON_POLICY} --evaluations 0 --run-dir {run}")) == 0
    code = (
        "import sys; sys.modules['minigrid'] = None\n"
        "import numpy as np, rl_plugins\n"
        f"agent = rl_plugins.load({str(run)!r})\n"
        "print(agent.act(np.zeros(agent.observation_space.shape, np.uint8)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) in range(7)


def outcome(run):
    return json.loads((run / "outcome.json").read_text())


def write_prices(path):
    pandas: Any = pytest.importorskip("pandas")

    numbers = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(0.01 * numbers.standard_normal(400)))
    index = pandas.date_range("2020-01-01", periods=400, freq="h")
    table = pandas.DataFrame({"open": close, "high": close, "low": close, "close": close}, index)
    table["volume"] = 1.0
    table["feature_change"] = table["close"].pct_change().fillna(0.0)
    table.to_pickle(path)


def real_observations(run, trusts, count):
    """Of random actions."""
    env = make_one(task_of(read_run(run, imports=[trusts]), None))
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    found: list[object] = []
    while len(found) < count:
        found.append(observation)
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    return found


def compare(agent, file, observations):
    """The agent's action and the file's."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for observation in observations:
        leaves = [np.asarray(leaf)[None] for leaf in optree.tree_leaves(observation)]
        # As export's documentation says: what is float64 in the task is float32 in the file.
        leaves = [leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf for leaf in leaves]
        outputs = session.run(None, dict(zip(names, leaves, strict=True)))
        actions = optree.tree_leaves(agent.act(observation))
        for ours, theirs in zip(actions, outputs, strict=True):
            assert agent.action_space.contains(agent.act(observation))
            np.testing.assert_allclose(np.asarray(ours), theirs[0], rtol=1e-5, atol=1e-5)

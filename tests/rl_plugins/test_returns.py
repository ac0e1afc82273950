"""What `rl-plugins train` reaches with the tuned settings. Slow: `make test-slow`."""

import statistics

import pytest

from rl_plugins import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(5))
def test_trpo_solves_cartpole_in_100_000_steps_on_every_seed(seed, tmp_path):
    run = train("trpo", "CartPole-v1", run_dir=tmp_path / "run", seed=seed, total_steps=100_000)
    assert run.evaluation is not None
    assert run.evaluation.returns == (500.0,) * 20


def test_trpo_exceeds_3000_on_halfcheetah_in_300_000_steps_over_three_seeds(tmp_path):
    finals = []
    for seed in (1, 2, 3):
        run = train(
            "trpo", "HalfCheetah-v5", run_dir=tmp_path / str(seed), seed=seed, total_steps=300_000
        )
        assert run.evaluation is not None
        finals.append(run.evaluation.mean)
    assert statistics.mean(finals) > 3000

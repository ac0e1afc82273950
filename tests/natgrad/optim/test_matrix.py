"""Features of models by loops by optimizers: each cell is the reference's value, or refuses in a
sentence that bench/problems/cells.py knows. Drawn in pairs of features; docs/pages/loops.md has
all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.problems.cells import cell, curvature
from bench.problems.model_features import FEATURES, WIDTH, pair
from bench.problems.training_loops import LOOPS, OPTIMIZERS
from natgrad.flat import flatten
from natgrad.optim import LevenbergMarquardt, OptimizerStatus

QUICK = [name for name, loop in LOOPS.items() if not loop.compiles]
SEEDS = st.integers(0, 2**16)
pairs = st.lists(st.sampled_from(list(FEATURES)), min_size=1, max_size=2).map(tuple)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=8)
@given(pairs, st.sampled_from(QUICK), SEEDS)
def test_a_step_is_that_of_the_plain_twin_or_refused(optimizer, features, loop, seed):
    found = cell(features, loop, optimizer, seed)
    assert found.right, found


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=300)
@given(pairs, st.sampled_from(QUICK), SEEDS)
def test_hundreds_of_steps_too(optimizer, features, loop, seed):
    found = cell(features, loop, optimizer, seed)
    assert found.right, found


@pytest.mark.parametrize("chunk_size", [None, 3])
@settings(max_examples=20)
@given(pairs, SEEDS)
def test_a_curvature_is_that_of_the_plain_twin_or_refused(chunk_size, features, seed):
    if chunk_size and any(FEATURES[name].by_batch for name in features):
        return  # chunks are normalised, and draw, by themselves
    found = curvature(features, seed, chunk_size)
    assert found.right, found


# What people need most has a value and no refusal.
VALUES = [
    ("parameter hook", "plain"), ("checkpoint", "plain"), ("LoRA", "plain"), ("BatchNorm", "plain"),
    ("tied", "plain"), ("frozen", "plain"), ("weight norm", "plain"), ("spectral norm", "plain"),
    ("plain", "accumulation"), ("plain", "clipping"), ("plain", "autocast"),
    ("plain", "functional_call"), ("plain", "Lightning, automatic"), ("plain", "Lightning, manual"),
]  # fmt: skip


@pytest.mark.parametrize(("feature", "loop"), VALUES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_these_cells_are_values(optimizer, feature, loop):
    if LOOPS[loop].plain and not OPTIMIZERS[optimizer].plain:
        loop = "closure"
    if (optimizer, feature) == ("LevenbergMarquardt", "parameter hook"):
        pytest.skip("it takes residuals then: the next test")
    found = cell((feature,), loop, optimizer, 1)
    assert found.right, found
    assert not found.refusal, found


@pytest.mark.parametrize("solver", ["dense", "cg", "sample_space"])
def test_residuals_are_a_value_where_parameters_have_hooks(solver, generator):
    """J and Jᵀr are those of the model: the steps of the same model without hooks."""
    models = [
        pair((feature, "plain"), 1, torch.float64)[0] for feature in ("parameter hook", "plain")
    ]
    x = torch.randn(8, WIDTH, generator=generator, dtype=torch.float64)
    for model in models:
        optimizer = LevenbergMarquardt(model.parameters(), solver=solver)

        def residuals(model=model):
            return (model(x) - 1).flatten()

        for _ in range(3):
            optimizer.step(residuals)
        assert optimizer.last_step is not None
        assert optimizer.last_step.status is OptimizerStatus.ACCEPTED
    assert torch.equal(*(flatten(model.parameters()) for model in models))


@pytest.mark.slow
@pytest.mark.parametrize("loop", [name for name in LOOPS if name not in QUICK])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=10)
@given(pairs, SEEDS)
def test_compiled_models_too(optimizer, loop, features, seed):
    found = cell(features, loop, optimizer, seed)
    assert found.right, found

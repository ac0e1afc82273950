import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.solvers import Status, cg, model_decrease, relative_progress
from natgrad.testing.strategies import matrix_with_spectrum, spd_matrices, vectors_like

SEEDS = st.integers(0, 2**31 - 1)
FLOAT64 = (torch.float64,)


def slow():
    """A system that conjugate gradients take hundreds of iterations for."""
    A = matrix_with_spectrum(torch.logspace(0, -4, 150, dtype=torch.float64), seed=0)
    return A, vectors_like(A, seed=1)


@functools.cache
def model_values():
    """φ(x) = ½ xᵀA x − bᵀx at the iterates of an unstopped solve, by one product each."""
    A, b = slow()
    iterates = (cg(A, b, rtol=0.0, max_iterations=k).x for k in range(1, 121))
    return [float(0.5 * x @ (A @ x) - b @ x) for x in iterates]


def martens(values, tolerance=5e-4, window=10, fraction=0.1):
    """The first i at which section 4.4 of the paper stops, from φ₁, φ₂, …; None if none."""
    for i in range(1, len(values) + 1):
        k = max(window, int(fraction * i))
        if i > k and values[i - k - 1] < 0:
            relative = (values[i - 1] - values[i - k - 1]) / values[i - 1]
            if relative < k * tolerance:
                return i
    return None


def nash_sofer(values, threshold=0.5):
    for i in range(2, len(values) + 1):
        now, before = values[i - 1], values[i - 2]
        if now < 0 and i * (1 - before / now) <= threshold:
            return i
    return None


@pytest.mark.parametrize("tolerance", [5e-4, 3e-4, 1e-3])
@pytest.mark.parametrize(("window", "fraction"), [(10, 0.1), (3, 0.0), (5, 0.2)])
def test_relative_progress_stops_where_the_paper_does(tolerance, window, fraction):
    A, b = slow()
    expected = martens(model_values(), tolerance, window, fraction)
    rule = relative_progress(tolerance, window=window, fraction=fraction)
    s = cg(A, b, rtol=0.0, max_iterations=120, stop=rule)
    assert expected is not None
    assert s.status is Status.STOPPED
    assert s.iterations == s.products == expected


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.1])
def test_model_decrease_stops_where_its_definition_does(threshold):
    A, b = slow()
    expected = nash_sofer(model_values(), threshold)
    s = cg(A, b, rtol=0.0, max_iterations=120, stop=model_decrease(threshold))
    assert (s.status, s.iterations) == (Status.STOPPED, expected)


@given(
    st.lists(st.floats(-10, 10).filter(lambda value: abs(value) > 1e-6), min_size=1, max_size=60),
    st.floats(1e-4, 0.1),
    st.integers(1, 12),
    st.floats(0, 0.9),
)
def test_the_rules_agree_with_plain_ones_on_any_sequence(values, tolerance, window, fraction):
    """Falling or not, of any sign: the guard φ_{i−k} < 0 is part of the rule."""
    stop = relative_progress(tolerance, window=window, fraction=fraction)
    other = model_decrease(tolerance)
    tensors = [torch.tensor(value, dtype=torch.float64) for value in values]
    first = next((i for i in range(1, len(values) + 1) if bool(stop(tensors[:i]))), None)
    assert first == martens(values, tolerance, window, fraction)
    first = next((i for i in range(1, len(values) + 1) if bool(other(tensors[:i]))), None)
    assert first == nash_sofer(values, tolerance)


def test_the_factor_k_and_the_guard_are_part_of_relative_progress():
    rule = relative_progress()  # Martens's settings: 5e-4, 10 and 0.1
    within = [torch.tensor(-1.0)] + [torch.tensor(-1.0 - 4e-3)] * 10
    assert bool(rule(within))  # 4e-3 in ten iterations: below 10 · 5e-4, above 5e-4
    assert not bool(rule([torch.tensor(1.0), *within[1:]]))
    assert not bool(rule(within[:10]))
    assert not bool(rule([torch.tensor(-1.0)] + [torch.tensor(-1.0 - 6e-3)] * 10))


def test_relative_progress_stops_strictly_below_its_bound_and_zero():
    rule = relative_progress(0.125, window=2)  # a quarter, for two iterations
    for before, stops in ((-0.75, False), (-0.8, True)):
        assert bool(rule([torch.tensor(before)] * 2 + [torch.tensor(-1.0)])) is stops
    generous = relative_progress(1.0, window=2)
    for before, stops in ((-0.5, True), (0.0, False), (0.5, False)):
        assert bool(generous([torch.tensor(before)] * 2 + [torch.tensor(-1.0)])) is stops


def test_model_decrease_counts_iterations():
    rule = model_decrease()
    values = [torch.tensor(value) for value in (-1.0, -1.5, -1.7, -1.9)]
    # 2 (1 − 1 / 1.5) = 0.67, 3 (1 − 1.5 / 1.7) = 0.35, 4 (1 − 1.7 / 1.9) = 0.42
    assert [bool(rule(values[:i])) for i in range(1, 5)] == [False, False, True, True]
    assert bool(rule([torch.tensor(-0.75), torch.tensor(-1.0)]))  # 2 (1 − ¾) is the threshold
    assert not bool(rule([torch.tensor(1.0), torch.tensor(0.0)]))


@given(spd_matrices(dtypes=FLOAT64), SEEDS, st.sampled_from([1, 2, 5]))
def test_a_stopped_solve_is_the_unstopped_one_truncated(A, seed, check_every):
    b = vectors_like(A, seed=seed)
    rule = relative_progress(1e-2, window=2, fraction=0.0)
    s = cg(A, b, rtol=1e-12, stop=rule, check_every=check_every)
    if s.status is Status.STOPPED:
        once = cg(A, b, rtol=1e-12, stop=rule)
        truncated = cg(A, b, rtol=1e-12, max_iterations=once.iterations)
        assert torch.equal(s.x, truncated.x)
        assert torch.equal(s.Ax, truncated.Ax)
        assert 0 <= s.iterations - once.iterations < check_every
        assert s.residual_norm > 1e-12 * float(b.norm())
        # Still a descent direction of the model.
        assert float(b @ s.x) > 0


@given(spd_matrices(max_size=10), SEEDS, st.integers(-30, 30), st.integers(-30, 30))
def test_the_rules_are_free_of_scale(A, seed, a_power, b_power):
    b = vectors_like(A, seed=seed)
    for rule in (relative_progress(1e-2, window=2), model_decrease()):
        plain = cg(A, b, rtol=1e-6, stop=rule)
        scaled = cg(A * 2.0**a_power, b * 2.0**b_power, rtol=1e-6, stop=rule)
        assert plain.status is scaled.status
        assert plain.iterations == scaled.iterations


def test_the_rule_sees_the_model_of_every_iterate():
    A, b = slow()
    seen = []

    def watch(values):
        seen.append(float(values[-1]))
        assert len(values) == len(seen)
        return torch.zeros((), dtype=torch.bool)

    cg(A, b, rtol=0.0, max_iterations=120, stop=watch)
    scale = seen[0] / model_values()[0]  # the solver's own unit, a power of two
    assert math.log2(scale) == pytest.approx(round(math.log2(scale)), abs=1e-9)
    assert [value / scale for value in seen] == pytest.approx(model_values(), rel=1e-9)


def test_convergence_comes_before_the_rule():
    A, b = torch.eye(3), torch.ones(3)
    s = cg(A, b, stop=lambda values: torch.ones((), dtype=torch.bool))
    assert s.status is Status.CONVERGED
    early = cg(torch.diag(torch.tensor([1.0, 2.0, 4.0])), b, stop=lambda values: values[-1] < 0)
    assert (early.status, early.iterations, early.products) == (Status.STOPPED, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relative_progress(0.0), "tolerance=0.0"),
        (lambda: relative_progress(float("nan")), "tolerance=nan"),
        (lambda: relative_progress(window=0), "window=0"),
        (lambda: relative_progress(fraction=1.0), "fraction=1.0"),
        (lambda: relative_progress(fraction=-0.1), "fraction=-0.1"),
        (lambda: model_decrease(0.0), "got 0.0"),
        (lambda: model_decrease(float("nan")), "got nan"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()

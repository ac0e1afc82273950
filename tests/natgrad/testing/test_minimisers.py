"""Functions that minimise, and torch's LBFGS: those that hold, those with a fault, and peers."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from bench.subjects import MINIMISERS
from natgrad.testing.adapters import torch_optim, torchmin
from natgrad.testing.cases.objective import Objective
from natgrad.testing.check import Outcome
from natgrad.testing.conformance import checks_for, parametrize_with_checks
from natgrad.testing.subjects.minimiser import Answer, Minimiser

LBFGS = torch_optim.adapt("LBFGS", torch.optim.LBFGS)
with_torchmin = pytest.mark.skipif(find_spec("torchmin") is None, reason="needs pytorch-minimize")


RIGHT = MINIMISERS[0].call


def absolute_tolerance(value, start):
    (g,) = torch.autograd.grad(value(x := start.clone().requires_grad_()), x)
    return Answer(start, True) if float(g.norm()) < 1e-6 else RIGHT(value, start)


def nan_is_success(value, start):
    found = RIGHT(value, start)
    return Answer(found.x, True)


def never_sure(value, start):
    return Answer(RIGHT(value, start).x, False)


def into_the_start(value, start):
    start.copy_(RIGHT(value, start).x)
    return Answer(start, True)


def endless(value, start):
    x = start
    while not value(x) < 1e-12:
        x = x.clone()
    return Answer(x, True)


def past_the_edge(value, start):
    found = RIGHT(value, start)
    return found if found.success else Answer(start - 2, False)


FAULTS = {
    absolute_tolerance: "M3",
    nan_is_success: "M1",
    never_sure: "M2",
    into_the_start: "M7",
    endless: "M1",
    past_the_edge: "M4",
}


def outcome(subject, kind: str, identifier: str, examples: int = 4) -> Outcome:
    (check,) = (check for check in checks_for(kind) if check.identifier == identifier)
    return check.examine(subject, examples=examples).outcome


@parametrize_with_checks(MINIMISERS, "minimiser")
def test_our_optimizers_as_minimisers(subject, check):
    check(subject, examples=3)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(fault):
    assert outcome(Minimiser.of(fault), "minimiser", FAULTS[fault], examples=12) is Outcome.FAILED


@with_torchmin
@pytest.mark.parametrize(
    ("method", "failed"),
    [
        ("trust-ncg", {"M1", "M3"}),
        ("trust-exact", {"M1", "M2"}),
        ("cg", {"M1", "M2"}),
        ("l-bfgs", {"M1", "M2", "M4"}),
        ("trust-krylov", {"M2", "M5"}),
        ("newton-exact", {"M1", "M4"}),
    ],
)
def test_what_was_measured_of_pytorch_minimize_comes_out(method, failed):
    for identifier in sorted(failed):
        found = outcome(torchmin.minimiser(method), "minimiser", identifier, examples=6)
        assert found is Outcome.FAILED, identifier


@with_torchmin
def test_newton_exact_solves_in_every_unit():
    for identifier in ("M2", "M3", "M3b", "M5", "M6"):
        found = outcome(torchmin.minimiser("newton-exact"), "minimiser", identifier)
        assert found is Outcome.PASSED, identifier


@with_torchmin
@pytest.mark.parametrize("identifier", ["P2", "P4", "P10", "P15c", "P16b", "P17b"])
def test_what_was_measured_of_minimizer_comes_out(identifier):
    from torchmin.optim import Minimizer

    method = {"P16b": "cg", "P10": "trust-ncg"}.get(identifier, "l-bfgs")
    subject = torchmin.adapt("Minimizer", Minimizer, method=method)
    assert outcome(subject, "optimizer", identifier) is Outcome.FAILED


@pytest.mark.parametrize("identifier", ["P1b", "P2b", "P5b", "P8", "P14b", "P15c", "P15d"])
def test_what_was_measured_of_lbfgs_comes_out(identifier):
    assert outcome(LBFGS, "optimizer", identifier, examples=9) is Outcome.FAILED


@pytest.mark.parametrize("identifier", ["P1", "P2", "P4", "P6", "P10", "P12", "P16", "P17b"])
def test_what_lbfgs_keeps_is_not_denied(identifier):
    assert outcome(LBFGS, "optimizer", identifier, examples=2) is Outcome.PASSED


def test_a_counterexample_is_small():
    """A quadratic of one dimension, a unit where the tolerance just matters."""
    (check,) = (check for check in checks_for("minimiser") if check.identifier == "M6")
    objective = check.examine(Minimiser.of(absolute_tolerance)).arguments["objective"]
    assert len(objective.eigenvalues) == 1


@pytest.mark.parametrize("kind", ["quadratic", "rosenbrock", "logarithm", "nan"])
@pytest.mark.parametrize("at_minimum", [False, True])
def test_the_code_of_an_objective_is_the_objective(kind, at_minimum):
    objective = Objective(kind, (1.0, 0.25), seed=3, scale=0.125, at_minimum=at_minimum)
    made: dict[str, Any] = {}
    exec(objective.code(), made)
    if kind != "logarithm" or not at_minimum:
        torch.testing.assert_close(made["x"], objective.start, rtol=0, atol=0)
    value = made["f"](made["x"])
    torch.testing.assert_close(value, objective.value(made["x"]), equal_nan=True)


@with_torchmin
def test_a_counterexample_runs_without_natgrad(capsys):
    code = torchmin.minimiser("bfgs").code(Objective("rosenbrock", at_minimum=True))
    assert "natgrad" not in code
    exec(code, {})
    assert capsys.readouterr().out.startswith("False A non-descent direction")

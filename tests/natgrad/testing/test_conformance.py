"""The faces of the kit: verdicts, expected failures, parameters, names, the command line."""

import json
from typing import Any

import pytest
import scipy.sparse.linalg
import torch
from hypothesis import strategies as st

import natgrad
from natgrad.testing import (
    Check,
    CheckFailed,
    ChecksFailed,
    Kind,
    NotApplicable,
    Outcome,
    check_step_size,
    checks_for,
    parametrize_with_checks,
    subject,
)
from natgrad.testing.__main__ import Arguments, main
from natgrad.testing.cases.system import System
from natgrad.testing.check import check
from natgrad.testing.conformance import all_checks
from natgrad.testing.counterexample import script
from natgrad.testing.subjects.step_size import StepSizeRule


def double(sKs, delta):
    return 2 * natgrad.step_size(sKs, delta).alpha


def of(identifier: str) -> Check:
    return next(each for each in all_checks() if each.identifier == identifier)


def test_every_check_has_a_name_of_its_own_a_statement_and_a_tolerance():
    identifiers = [each.identifier for each in all_checks()]
    assert len(set(identifiers)) == len(identifiers)
    assert all(each.statement and each.tolerance and each.name for each in all_checks())


@pytest.mark.parametrize(
    ("letter", "last"), [("O", 20), ("S", 18), ("T", 10), ("N", 9), ("L", 8), ("P", 19)]
)
def test_the_list_of_properties_is_complete(letter, last):
    numbers = {each.identifier for each in all_checks()}
    assert {f"{letter}{number}" for number in range(1, last + 1)} <= numbers


def test_a_failure_names_the_check_and_the_smallest_case():
    with pytest.raises(CheckFailed, match=r"N3 the_step_has.*½ α² sᵀK s = δ") as raised:
        of("N3")(StepSizeRule("double", double))
    assert raised.value.arguments == {"log10_curvature": 0, "mantissa": 1, "log10_delta": 0}


def test_a_verdict_never_raises():
    verdict = of("N3").examine(StepSizeRule("double", double))
    assert verdict.outcome is Outcome.FAILED
    assert verdict.counterexample == "log10_curvature=0, mantissa=1, log10_delta=0"
    assert "δ" in verdict.reason
    missing = of("S16").examine(subject(lambda A, b, *, rtol: b, "solver"))
    assert missing.outcome is Outcome.NOT_APPLICABLE
    assert "columns" in missing.reason


def test_an_exception_of_the_subject_is_a_failure():
    def broken(sKs, delta):
        raise KeyError("alpha")

    assert of("N3").examine(StepSizeRule("broken", broken)).reason == "KeyError: 'alpha'"


def test_expected_failures_are_strict():
    verdicts = check_step_size(double, expected_failures={"N3": "twice the step"})
    assert [verdict.outcome for verdict in verdicts] == [Outcome.FAILED, Outcome.PASSED]
    with pytest.raises(ChecksFailed, match="N3"):
        check_step_size(double)
    with pytest.raises(ChecksFailed, match="was expected to fail"):
        check_step_size(natgrad.step_size, expected_failures={"N3": "once"})
    with pytest.raises(ValueError, match=r"names \['S4'\]"):
        check_step_size(natgrad.step_size, expected_failures={"S4": "not a step size"})


def test_parameters_are_every_check_with_strict_xfails():
    subjects = [subject(double, "step-size")]
    name = subjects[0].name
    mark = parametrize_with_checks(subjects, "step-size", expected_failures={name: {"N3": "2"}})
    first, second = mark.args[1]
    assert first.id == f"{name}-N3_the_step_has_the_divergence_asked_for"
    assert first.marks[0].kwargs["strict"]
    assert not second.marks


def test_cases_are_the_same_unless_a_seed_says_otherwise():
    seen = []

    @check("X", Kind.STEP_SIZE, "none", tolerance="none", number=st.integers())
    def records(rule, number):
        seen.append(number)

    def run(seed):
        seen.clear()
        records(StepSizeRule("", double), seed=seed)
        return list(seen)

    assert run(None) == run(None)
    assert run(3) == run(3)
    assert run(3) != run(4)


def test_a_search_for_smaller_cases_is_bounded():
    calls = 0

    @check("X", Kind.STEP_SIZE, "none", tolerance="none", numbers=st.lists(st.integers()))
    def fails(rule, numbers):
        nonlocal calls
        calls += 1
        assert len(numbers) < 2

    with pytest.raises(CheckFailed, match=r"numbers=\[0, 0\]"):
        fails(StepSizeRule("", double))
    assert calls < 250


def test_a_check_that_skips_does_not_apply():
    @check("X", Kind.STEP_SIZE, "none", tolerance="none", number=st.integers())
    def skips(rule, number):
        raise NotApplicable("not told")

    assert skips.examine(StepSizeRule("", double)).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-12, 1e6)])
def test_the_code_of_a_system_is_the_system(dtype, scales):
    system = System((1.0, 0.25, -0.5), seed=7, A_scale=scales[0], b_scale=scales[1], dtype=dtype)
    made: dict[str, Any] = {"torch": torch}
    exec(system.code(), made)
    assert torch.equal(made["A"], system.A)
    assert torch.equal(made["b"], system.b)


@pytest.mark.parametrize(("identifier", "shown"), [("S4", "info 0"), ("S10", "nan, nan")])
def test_a_counterexample_runs_without_natgrad(identifier, shown, capsys):
    cg = subject(scipy.sparse.linalg.cg, "solver")
    code = script(of(identifier).examine(cg), cg)
    assert code is not None
    assert "natgrad" not in code
    exec(code, {})
    assert shown in capsys.readouterr().out


def test_what_a_solver_may_answer():
    A = torch.tensor([[2.0]], dtype=torch.float64)
    for answer in (
        lambda A, b, *, rtol: b / 2,
        lambda A, b, *, rtol: (b / 2, 0),
        lambda A, b, *, rtol: natgrad.cg(A, b, rtol=rtol),
    ):
        found = subject(answer, "solver")(A, torch.ones(1, dtype=torch.float64))
        assert found.solved
        assert found.x.tolist() == [0.5]
    with pytest.raises(TypeError, match="answered with str"):
        subject(lambda A, b, *, rtol: "0.5", "solver")(A, torch.ones(1))


def test_the_command_line_shows_a_row_a_check_and_tells_by_its_status(capsys):
    arguments = Arguments("natgrad:step_size", "step-size")
    assert main(arguments) == 0
    assert "2 passed, 0 failed" in capsys.readouterr().out
    arguments = Arguments("scipy.sparse.linalg:cg", "solver", only=("S10b",))
    assert main(arguments) == 1
    assert "bad=nan" in capsys.readouterr().out


def test_the_command_line_speaks_json(capsys):
    main(Arguments("scipy.sparse.linalg:cg", "solver", only=("S4b", "S10b"), json=True))
    told = json.loads(capsys.readouterr().out)
    assert [verdict["outcome"] for verdict in told["verdicts"]] == ["passed", "failed"]
    assert "import" in told["verdicts"][1]["code"]


@pytest.mark.parametrize(
    ("target", "only", "message"),
    [
        ("natgrad", (), "expected MODULE:NAME"),
        ("nowhere:cg", (), "No module named"),
        ("natgrad:nothing", (), "nothing"),
        ("natgrad:cg", ("X1",), "no such check"),
    ],
)
def test_a_wrong_call_is_told(target, only, message, capsys):
    assert main(Arguments(target, "solver", only=only)) == 2
    assert message in capsys.readouterr().err


def test_curvature_says_which_matrix_it_claims_to_be():
    with pytest.raises(ValueError, match="claims to be one of"):
        subject(lambda case: None, "curvature")


def test_every_kind_has_checks():
    assert all(checks_for(kind) for kind in Kind)

"""The checks tested: each fault is caught by the checks that are named, no right operator is."""

import dataclasses
import itertools
import re

import pytest
import torch

from natgrad.testing import truth
from natgrad.testing.check import Kind, Outcome
from natgrad.testing.conformance import checks_for, examine
from natgrad.testing.subjects.curvature import Curvature, Kronecker
from natgrad.testing.subjects.operator import Operator
from tests.natgrad.testing.operators import (
    Matrix,
    Products,
    corrected,
    dense_fisher,
    fisher,
    kronecker,
    sampled_fisher,
    solve,
)
from tests.natgrad.testing.unruly_curvature import STALE, UNRULY
from tests.natgrad.testing.wrong_curvature import WRONG, is_empirical, is_the_hessian_of_the_loss
from tests.natgrad.testing.wrong_kronecker import KRONECKER, LAYERS

CHECKS = {(kind, each.identifier): each for kind in Kind for each in checks_for(kind)}


def broken(subject, kind, identifiers):
    """Those that fail, of these; a few steps towards the smallest counterexample are enough."""
    found = []
    for identifier in identifiers:
        check = dataclasses.replace(CHECKS[kind, identifier], cost=25)
        verdict = check.examine(subject, examples=25 if identifier[:3] == "O17" else 150)
        assert verdict.outcome is not Outcome.NOT_APPLICABLE, verdict.reason
        raised = re.match(r"\w+(Error|Exception):", verdict.reason)
        assert bool(raised) == subject.name.split(".")[-1].startswith("needs_"), verdict.reason
        found += [identifier] if verdict.outcome is Outcome.FAILED else []
    return found


def named(each):
    return getattr(each, "name", getattr(each, "value", each)).split(".")[-1]


@pytest.mark.parametrize(("subject", "names"), [*WRONG, *UNRULY], ids=named)
def test_faulty_curvature_is_caught(subject, names):
    STALE.clear()
    assert broken(subject, Kind.CURVATURE, names.split()) == names.split()


@pytest.mark.parametrize(("subject", "names"), KRONECKER, ids=named)
def test_faulty_kronecker_factors_are_caught(subject, names):
    assert broken(subject, Kind.KRONECKER, names.split()) == names.split()


# --- Operators of a matrix


def reuses(matrix):
    place = torch.zeros(len(matrix), dtype=matrix.dtype)
    return Products(lambda v: place.copy_(matrix @ v))


def flips(matrix):
    return Products(lambda v: matrix @ v if v.ndim == 1 else (matrix @ v).flip(1))


def rounds(matrix):
    half = matrix.to(torch.bfloat16).to(matrix.dtype)
    return Matrix((half + half.mT) / 2)


EXPLICIT = [
    (lambda m: Matrix(m.triu()), "O3b O6b"),
    (lambda m: Matrix(-m), "O6b"),
    (rounds, "O6b"),
    (lambda m: Products(lambda v: m @ v + 1), "O1b O2b"),
    (lambda m: Products(lambda v: m @ v if float(v.norm()) > 1e-10 else 0 * v), "O2b"),
    (lambda m: Products(lambda v: (m @ v).double()), "O7b"),
    (reuses, "O8b"),
    (lambda m: Products(lambda v: m @ v.mul_(2) / 2), "O9b"),
    (lambda m: Matrix(m.mul_(2) / 2), "O9b"),
    (flips, "O20b"),
]


@pytest.mark.parametrize(("make", "names"), EXPLICIT, ids=[names for _, names in EXPLICIT])
def test_faulty_operators_are_caught(make, names):
    assert broken(Operator.of(make), Kind.OPERATOR, names.split()) == names.split()


def test_every_check_catches_a_fault():
    caught = set()
    for pairs in (WRONG, UNRULY, KRONECKER, EXPLICIT):
        caught |= {name for _, names in pairs for name in names.split()}
    kinds = (Kind.OPERATOR, Kind.CURVATURE, Kind.KRONECKER)
    every = {each.identifier for kind in kinds for each in checks_for(kind)}
    assert every - caught == set()


def test_identifiers_are_unique_and_cover_the_list():
    kinds = (Kind.OPERATOR, Kind.CURVATURE, Kind.KRONECKER)
    names = [each.identifier for kind in kinds for each in checks_for(kind)]
    assert len(names) == len(set(names))
    assert {f"O{index}" for index in range(1, 21)} | {"N2", "N6", "N8", "N9"} <= set(names)


# --- Right operators, which no check may accuse


def jacobian(case):
    A = fisher(case)
    return lambda v: A.forward(v).reshape(-1), lambda u: A.transpose(u.reshape(A.y.shape))


def gauss_newton(case):
    return Matrix(truth.gauss_newton(case))


GRAPH = ["chunks", "frozen", "fused", "random"]
RIGHT = [
    (Kind.OPERATOR, Operator.of(Matrix)),
    (Kind.CURVATURE, Curvature.of(fisher, "fisher", GRAPH, jacobian=jacobian)),
    (Kind.CURVATURE, Curvature.of(dense_fisher, "fisher", ["sum", "weights", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(gauss_newton, "gauss_newton", ["sum", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(is_the_hessian_of_the_loss, "hessian", ["sum", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(is_empirical, "empirical_fisher", ["weights", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(sampled_fisher, "fisher", ["sampled"])),
    (Kind.KRONECKER, Kronecker.of(kronecker, kinds=LAYERS, solve=solve)),
    (Kind.KRONECKER, Kronecker.of(corrected, ["corrected"], kinds=LAYERS, solve=solve)),
]


def accusations(subject, kind, seeds, examples):
    verdicts = itertools.chain.from_iterable(
        examine(subject, kind, seed=seed, examples=examples) for seed in seeds
    )
    return [
        f"{v.check} at {v.counterexample}: {v.reason}"
        for v in verdicts
        if v.outcome is Outcome.FAILED
    ]


@pytest.mark.parametrize(("kind", "subject"), RIGHT, ids=named)
def test_right_operators_are_not_accused(kind, subject):
    assert accusations(subject, kind, range(2), 5) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "subject"), RIGHT, ids=named)
def test_right_operators_are_not_accused_by_twenty_seeds(kind, subject):
    assert accusations(subject, kind, range(20), 10) == []

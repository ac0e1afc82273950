"""Assertions on curvature matrices of networks, shared by whole and Kronecker-factored ones.

In all of them ``dense(case)`` returns an operator's matrix (n, n) for a :class:`NetworkCase`,
``relative`` is the slack in units of the largest entry or eigenvalue, and ``seed`` is the seed of
what is drawn. They raise ``AssertionError`` with the worst deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from natgrad.testing.cases.network import NetworkCase

ROUNDING = 2.0**14
ENTRY = "2^14 eps of the largest entry: sums of a few thousand terms"
DRAWS, REPEATS, ERRORS = 5, 24, 5.0
STANDARD_ERRORS = "five standard errors of 24 draws; three would accuse one right operator in 370"
Dense = Callable[[NetworkCase], Tensor]


def assert_equal(got: Tensor, expected: Tensor, relative: float, what: str = "") -> None:
    """Assert that entries differ by at most ``relative`` times the largest expected one.

    Parameters
    ----------
    got, expected
        Tensors of one shape.
    relative
        The slack, in units of the largest expected entry.
    what
        A name of ``got`` for the message.
    """
    assert got.shape == expected.shape, f"{what}: {tuple(got.shape)}, not {tuple(expected.shape)}"
    difference = (got - expected).abs()
    largest = float(expected.abs().max())
    assert bool(torch.isfinite(got).all()), f"{what or 'the product'} is not finite"
    worst = int(difference.argmax())
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(worst), got.shape))
    allowed = relative * largest
    assert float(difference.max()) <= allowed, (
        f"{what}{': ' if what else ''}entry {place} is {float(got.reshape(-1)[worst]):.6g}, not "
        f"{float(expected.reshape(-1)[worst]):.6g}; largest entry {largest:.3g}, allowed "
        f"{allowed:.2g}"
    )


def assert_semidefinite(dense: Tensor, relative: float) -> None:
    """Assert that no eigenvalue is below −``relative`` times the largest absolute one."""
    eigenvalues = torch.linalg.eigvalsh((dense + dense.mT) / 2)
    least, largest = float(eigenvalues[0]), float(eigenvalues.abs().max())
    assert least >= -relative * largest, f"eigenvalues from {least:.3g} to {largest:.3g}"


def assert_rows_follow_the_parameters(dense: Dense, case: NetworkCase) -> None:
    """Assert that parameters listed in reverse only permute rows and columns."""
    order = case.reversal()
    expected = dense(case)[order][:, order]
    got = dense(replace(case, reverse=True))
    assert_equal(got, expected, ROUNDING * case.eps, "in reverse order")


def assert_samples_have_no_order(dense: Dense, case: NetworkCase, seed: int) -> None:
    """Assert that a permutation of the samples leaves the matrix as it was."""
    count = len(case.targets)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    mixed = replace(case, rows=tuple(order.tolist()))
    assert_equal(dense(mixed), dense(case), ROUNDING * case.eps, "permuted")


def assert_draws_tend_to(
    truth: Tensor, make: Callable[[NetworkCase], Any], case: NetworkCase, seed: int
) -> None:
    """Assert that the mean of vᵀA v over draws of labels is vᵀ(truth) v, within standard errors.

    Parameters
    ----------
    truth
        The expected matrix (n, n).
    make
        ``make(case)`` returns the operator A, which draws labels by ``case.draw_seed``.
    case
        The network and its data.
    seed
        Seed of v and of the draws.
    """
    v = case.vectors(1, seed)[:, 0]
    exact = float(v @ (truth @ v))
    values = []
    for index in range(REPEATS):
        A = make(replace(case, draws=DRAWS, draw_seed=seed + index))
        values.append(v @ (A @ v))
    found = torch.stack(values)
    mean, error = float(found.mean()), float(found.std()) / REPEATS**0.5
    assert error > 0, "every draw gives the same matrix"
    assert abs(mean - exact) <= ERRORS * error, (
        f"mean {mean:.4g} of {REPEATS} draws, standard error {error:.2g}, exact {exact:.4g}"
    )

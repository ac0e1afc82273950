"""Claims of convergence that the true residual refuses, whoever made them."""

import pytest
import torch

from natgrad.solvers import Status, cg, minres


@pytest.mark.parametrize(
    ("solve", "power"),
    [(cg, None), (cg, 600), (cg, -600), (minres, None), (minres, 60), (minres, -60)],
)
@pytest.mark.parametrize("residuals", [[0.6], [0.5], [0.4, 0.3], [0.4, 0.1, 0.04, 0.01]], ids=str)
def test_a_refused_claim_restarts_at_most_three_times_while_it_halves(solve, residuals, power):
    """A is 1, but each product that verifies leaves a residual that it was told. The scale of a
    preconditioner changes nothing."""
    left, products = list(residuals), 0

    def multiply(v):
        nonlocal products
        products += 1
        return v if products % 2 else torch.full_like(v, 1 - left.pop(0))

    given = {} if power is None else {"preconditioner": lambda r: r * 2.0**power}
    s = solve(multiply, torch.ones(1, dtype=torch.float64), rtol=1e-6, **given)
    assert (s.status, left) == (Status.STAGNATED, [])
    assert (s.iterations, s.products) == (len(residuals), 2 * len(residuals))
    assert s.residual_norm == pytest.approx(residuals[-1])

"""The test problems against what others published of them, and against SciPy."""

import pytest
import scipy.optimize
import torch
from torch.autograd.functional import hessian, jacobian

from bench.problems.more_garbow_hillstrom import PROBLEMS

pytestmark = pytest.mark.slow
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.number} {p.name}")

DIMENSIONS = {
    **{1: (2, 2), 2: (2, 2), 3: (2, 2), 4: (2, 3), 5: (2, 3), 6: (2, 10), 7: (3, 3), 8: (3, 15)},
    **{9: (3, 15), 10: (3, 16), 11: (3, 99), 12: (3, 10), 13: (4, 4), 14: (4, 6), 15: (4, 11)},
    **{16: (4, 20), 17: (5, 33), 18: (6, 13), 19: (11, 65), 20: (6, 31), 21: (10, 10)},
    **{22: (12, 12), 23: (4, 5), 24: (4, 8), 25: (10, 12), 26: (10, 10), 27: (10, 10)},
    **{28: (10, 10), 29: (10, 10), 30: (10, 10), 31: (10, 10), 32: (10, 20), 33: (10, 20)},
    **{34: (10, 20), 35: (8, 8)},
}

# Σ r² at the start: by hand; as tested by gonum/optimize/functions; as logged, as a norm, by
# MINPACK's own tests.
START_VALUES = {
    **{1: 24.2, 2: 400.5, 4: 999998000003.0, 5: 14.203125, 7: 2500.0, 13: 215.0, 14: 19192.0},
    **{20: 30.0, 21: 5 * 24.2, 22: 3 * 215.0, 23: 885.06264, 25: 3.85 + 38.5**2 + 38.5**4},
    **{27: 9 * 5.5**2 + (1 - 2**-10) ** 2, 30: 21.0, 31: 360.0},
    **{32: 50.0, 33: 8658670.0, 34: 4067996.0},
    **{3: 1.13526171734838, 9: 3.88810699116688e-06, 11: 12.11070582556949},
    **{12: 1031.1538106093985, 16: 7926693.33699744, 18: 0.77907007565597},
    **{24: 2.34000880546302, 26: 0.00707575946622261},
    **{6: 64.5856498144943**2, 8: 6.45613629515967**2, 10: 41153.4665543031**2},
    **{15: 0.0728915102882945**2, 17: 0.937564021037838**2, 19: 1.44686540984712**2},
    **{35: 0.196513862833975**2},
}

# As the paper prints them, and its formulas for (32) to (34) with n = 10, m = 20.
PAPERS_MINIMA = {
    **{2: (0, 48.9842), 6: (124.362,), 8: (8.21487e-3, 17.4286), 9: (1.12793e-8,)},
    **{10: (87.9458,), 15: (3.07505e-4, 1.02734e-3), 16: (85822.2,), 17: (5.46489e-5,)},
    **{18: (0, 5.65565e-3), 19: (4.01377e-2,), 20: (2.28767e-3,), 23: (2.24997e-5,)},
    **{24: (9.37629e-6,), 26: (0, 2.79506e-5), 27: (0, 1), 35: (3.51687e-3,)},
    **{32: (20 - 10,), 33: (20 * 19 / (2 * 41),), 34: ((400 + 60 - 6) / (2 * 37),)},
}

# Components at infinity are taken far out.
MINIMISERS = [
    (1, [1, 1], 0),
    (2, [5, 4], 0),
    (2, [11.4127790, -0.8968053], 48.9842),
    (4, [1e6, 2e-6], 0),
    (5, [3, 0.5], 0),
    (7, [1, 0, 0], 0),
    (8, [12.61 / 15, -1e12, -1e12], 17.4286),
    (11, [50, 25, 1.5], 0),
    (12, [1, 10, 1], 0),
    (12, [10, 1, -1], 0),
    (12, [3, 3, 0], 0),
    (13, [0] * 4, 0),
    (14, [1] * 4, 0),
    (15, [1e9, -14.07588, -45.25719e9, -28.2315e9], 1.02734e-3),
    (18, [1, 10, 1, 5, 4, 3], 0),
    (18, [4, 10, 3, 5, 1, 1], 0),
    (21, [1] * 10, 0),
    (22, [0] * 12, 0),
    (25, [1] * 10, 0),
    (26, [0] * 10, 0),
    (27, [1] * 10, 0),
    (27, [0] * 9 + [11], 1),
    (32, [-1] * 10, 10),
]


def test_they_are_the_35_in_order():
    assert [problem.number for problem in PROBLEMS] == list(range(1, 36))
    assert len({problem.name for problem in PROBLEMS}) == 35


@each_problem
def test_dimensions_and_dtype(problem):
    r = problem.residuals(problem.start)
    assert (*problem.start.shape, *r.shape) == DIMENSIONS[problem.number]
    assert problem.start.dtype == r.dtype == torch.float64


@pytest.mark.parametrize("number", START_VALUES)
def test_value_at_the_start(number):
    problem = PROBLEMS[number - 1]
    value = float(problem.objective(problem.start))
    assert value == pytest.approx(START_VALUES[number], rel=1e-12)


@each_problem
def test_minima_are_the_papers(problem):
    printed = PAPERS_MINIMA.get(problem.number, (0,))
    assert problem.minima == pytest.approx(printed, rel=1e-5, abs=0)
    assert list(problem.minima) == sorted(problem.minima)


@pytest.mark.parametrize(("number", "x", "value"), MINIMISERS)
def test_known_minimisers(number, x, value):
    problem = PROBLEMS[number - 1]
    reached = float(problem.objective(torch.tensor(x, dtype=torch.float64)))
    assert reached == pytest.approx(value, rel=1e-5, abs=1e-20)
    assert any(reached == pytest.approx(least, rel=1e-5, abs=1e-20) for least in problem.minima)


@each_problem
def test_levenberg_marquardt_reaches_a_listed_minimum(problem):
    found = scipy.optimize.least_squares(
        lambda x: problem.residuals(torch.from_numpy(x)).numpy(),
        problem.start.numpy(),
        lambda x: jacobian(problem.residuals, torch.from_numpy(x)).numpy(),
        method="lm",
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
        max_nfev=500,
    )
    reached = 2 * found.cost
    assert any(
        reached == pytest.approx(least, rel=1e-8, abs=1e-12 if least == 0 else 0)
        for least in problem.minima
    ), reached


@each_problem
def test_hessian_at_the_start_is_finite_and_symmetric(problem):
    H = hessian(problem.objective, problem.start)
    assert H.isfinite().all()
    torch.testing.assert_close(H, H.T, rtol=1e-12, atol=1e-12 * float(H.abs().max()))


@each_problem
def test_gradient_at_the_start_matches_finite_differences(problem):
    x = problem.start
    steps = 1e-5 * x.abs().clamp(min=1)
    columns = [problem.residuals(x + e) - problem.residuals(x - e) for e in torch.diag(steps)]
    differences = torch.stack(columns, dim=1) / (2 * steps)
    J, scale = jacobian(problem.residuals, x), differences.norm(dim=0)
    assert ((J - differences).norm(dim=0) <= 1e-5 * scale).all()
    g = jacobian(problem.objective, x)
    torch.testing.assert_close(g, 2 * J.T @ problem.residuals(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "turns"),
    [((1, 1), 1 / 8), ((0, 1), 1 / 4), ((-1, 1), 3 / 8), ((-1, -1), 5 / 8), ((1, -1), -1 / 8)],
)
def test_angle_of_the_helical_valley(x, turns):
    r = PROBLEMS[6].residuals(torch.tensor([*x, 0.0], dtype=torch.float64))
    assert float(r[0]) == pytest.approx(-100 * turns)


def test_boundary_value_and_integral_equation_share_their_root():
    boundary, integral = PROBLEMS[27], PROBLEMS[28]
    root = scipy.optimize.root(
        lambda x: boundary.residuals(torch.from_numpy(x)).numpy(), boundary.start.numpy(), tol=1e-14
    )
    assert float(integral.objective(torch.from_numpy(root.x))) < 1e-24

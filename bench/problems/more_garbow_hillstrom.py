"""The 35 problems of Moré, Garbow & Hillstrom, "Testing unconstrained optimization software".

ACM Transactions on Mathematical Software 7(1), 1981, 17-41. The numbers are the paper's, section 3;
residuals in the paper's order and sign, in float64 and twice differentiable by autograd. Where
the paper leaves the dimension open, one of its usual sizes is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import data_fitting as fit
from .data_fitting import count


@dataclass(frozen=True)
class Problem:
    """One problem: minimise Σ rᵢ(x)²."""

    number: int
    """The paper's, 1 to 35."""
    name: str
    residuals: Callable[[Tensor], Tensor]
    """x (n,) ↦ r (m,)."""
    start: Tensor
    """The paper's standard start (n,), float64."""
    minima: tuple[float, ...]
    """The paper's values of Σ rᵢ², local minima and limits at infinity too, the least first.

    To ten digits, of which the paper prints six.
    """

    def objective(self, x: Tensor) -> Tensor:
        r = self.residuals(x)
        return r @ r


def rosenbrock(x: Tensor) -> Tensor:
    """(1), and (21) for n > 2: a parabolic valley for each pair of variables."""
    x1, x2 = x.reshape(-1, 2).T
    return torch.stack((10 * (x2 - x1**2), 1 - x1), dim=1).flatten()


def freudenstein_roth(x: Tensor) -> Tensor:
    """(2): minima at (5, 4) and, local but nearer the start, (11.41, −0.8968)."""
    x1, x2 = x.unbind()
    return torch.stack((-13 + x1 + ((5 - x2) * x2 - 2) * x2, -29 + x1 + ((x2 + 1) * x2 - 14) * x2))


def powell_badly_scaled(x: Tensor) -> Tensor:
    """(3): minimum at (1.098e-5, 9.106)."""
    x1, x2 = x.unbind()
    return torch.stack((1e4 * x1 * x2 - 1, torch.exp(-x1) + torch.exp(-x2) - 1.0001))


def brown_badly_scaled(x: Tensor) -> Tensor:
    """(4): minimum at (1e6, 2e-6)."""
    x1, x2 = x.unbind()
    return torch.stack((x1 - 1e6, x2 - 2e-6, x1 * x2 - 2))


def beale(x: Tensor) -> Tensor:
    """(5): minimum at (3, 0.5)."""
    x1, x2 = x.unbind()
    y = x.new_tensor([1.5, 2.25, 2.625])
    return y - x1 * (1 - torch.stack((x2, x2**2, x2**3)))


def helical_valley(x: Tensor) -> Tensor:
    """(7): the angle θ, in turns, of (x₁, x₂) jumps across x₁ = 0, x₂ < 0."""
    x1, x2, x3 = x.unbind()
    θ = 0.25 - torch.atan2(x1, x2) / (2 * math.pi)
    return torch.stack((10 * (x3 - 10 * θ), 10 * (torch.hypot(x1, x2) - 1), x3))


def powell_singular(x: Tensor) -> Tensor:
    """(13), and (22) for n > 4: the Hessian at the minimum, 0, is singular."""
    x1, x2, x3, x4 = x.reshape(-1, 4).T
    r = (x1 + 10 * x2, 5**0.5 * (x3 - x4), (x2 - 2 * x3) ** 2, 10**0.5 * (x1 - x4) ** 2)
    return torch.stack(r, dim=1).flatten()


def wood(x: Tensor) -> Tensor:
    """(14): two parabolic valleys, coupled; a saddle near (−1, 1, −1, 1)."""
    x1, x2, x3, x4 = x.unbind()
    return torch.stack(
        (
            10 * (x2 - x1**2),
            1 - x1,
            90**0.5 * (x4 - x3**2),
            1 - x3,
            10**0.5 * (x2 + x4 - 2),
            10**-0.5 * (x2 - x4),
        )
    )


def watson(x: Tensor) -> Tensor:
    """(20): the polynomial of coefficients x that best solves p′ = 1 + p², p(0) = 0."""
    j = torch.arange(len(x), dtype=x.dtype)
    powers = (count(29) / 29)[:, None] ** j
    p, slope = powers @ x, powers[:, :-1] @ (j * x)[1:]
    return torch.cat((slope - p**2 - 1, x[:1], x[1:2] - x[:1] ** 2 - 1))


def penalty_1(x: Tensor) -> Tensor:
    """(23): Σ (xᵢ − 1)², of weight 1e-5, against the sphere of radius ½."""
    return torch.cat((1e-5**0.5 * (x - 1), (x @ x - 0.25).view(1)))


def penalty_2(x: Tensor) -> Tensor:
    """(24): exponentials, of weight 1e-5, against an ellipsoid."""
    i = count(len(x))
    e, y = torch.exp(x / 10), torch.exp(i / 10)
    weak = torch.cat((e[1:] + e[:-1] - (y[1:] + y[:-1]), e[1:] - math.exp(-0.1)))
    return torch.cat((x[:1] - 0.2, 1e-5**0.5 * weak, (i.flip(0) @ x**2 - 1).view(1)))


def variably_dimensioned(x: Tensor) -> Tensor:
    """(25): quadratic but for the fourth power of one direction."""
    s = (count(len(x)) @ (x - 1)).view(1)
    return torch.cat((x - 1, s, s**2))


def trigonometric(x: Tensor) -> Tensor:
    """(26): many stationary points, many minima."""
    n = len(x)
    return n - torch.cos(x).sum() + count(n) * (1 - torch.cos(x)) - torch.sin(x)


def brown_almost_linear(x: Tensor) -> Tensor:
    """(27): linear but for the last residual, the product."""
    linear = x[:-1] + x.sum() - (len(x) + 1)
    return torch.cat((linear, (x.prod() - 1).view(1)))


def discrete_boundary_value(x: Tensor) -> Tensor:
    """(28): u″ = (u + t + 1)³ / 2, u(0) = u(1) = 0, by differences."""
    h = 1 / (len(x) + 1)
    t = h * count(len(x))
    u = pad(x, (1, 1))
    return 2 * x - u[:-2] - u[2:] + h**2 * (x + t + 1) ** 3 / 2


def discrete_integral_equation(x: Tensor) -> Tensor:
    """(29): the same equation by Green's function, min(t, s) (1 − max(t, s)); the same root."""
    h = 1 / (len(x) + 1)
    t = h * count(len(x))
    green = torch.minimum(t[:, None], t) * (1 - torch.maximum(t[:, None], t))
    return x + h * (green @ (x + t + 1) ** 3) / 2


def broyden_tridiagonal(x: Tensor) -> Tensor:
    """(30): each variable with its two neighbours."""
    u = pad(x, (1, 1))
    return (3 - 2 * x) * x - u[:-2] - 2 * u[2:] + 1


def broyden_banded(x: Tensor) -> Tensor:
    """(31): each variable with the five before it and the one after it."""
    band = torch.ones(len(x), len(x), dtype=x.dtype).tril(1).triu(-5) - torch.eye(len(x))
    return x * (2 + 5 * x**2) + 1 - band @ (x * (1 + x))


def linear_full_rank(x: Tensor) -> Tensor:
    """(32), m = 20: least value m − n."""
    m = 20
    return pad(x, (0, m - len(x))) - 2 / m * x.sum() - 1


def linear_rank_1(x: Tensor) -> Tensor:
    """(33), m = 20: least value m (m − 1) / (2 (2m + 1)), on a hyperplane."""
    return count(20) * (count(len(x)) @ x) - 1


def linear_rank_1_zeros(x: Tensor) -> Tensor:
    """(34), m = 20: least value (m² + 3m − 6) / (2 (2m − 3)), on a hyperplane."""
    j = count(len(x))
    return pad(count(18), (1, 1)) * (j[1:-1] @ x[1:-1]) - 1


def chebyquad(x: Tensor) -> Tensor:
    """(35), m = n: nodes x in [0, 1] whose mean integrates the Chebyshev polynomials best."""
    T = [torch.ones_like(x), 2 * x - 1]
    for _ in range(len(x) - 1):
        T.append(2 * T[1] * T[-1] - T[-2])
    i = count(len(x))
    integrals = torch.where(i % 2 == 0, -1 / (i**2 - 1), 0.0)
    return torch.stack(T[1:]).mean(dim=1) - integrals


TENTHS = [j / 10 for j in range(1, 11)]
ELEVENTHS = [j / 11 for j in range(1, 11)]

# name, residuals, standard start, minima
TABLE = (
    ("Rosenbrock", rosenbrock, [-1.2, 1.0], (0.0,)),
    ("Freudenstein and Roth", freudenstein_roth, [0.5, -2.0], (0.0, 48.98425368)),
    ("Powell badly scaled", powell_badly_scaled, [0.0, 1.0], (0.0,)),
    ("Brown badly scaled", brown_badly_scaled, [1.0, 1.0], (0.0,)),
    ("Beale", beale, [1.0, 1.0], (0.0,)),
    ("Jennrich and Sampson", fit.jennrich_sampson, [0.3, 0.4], (124.3621824,)),
    ("Helical valley", helical_valley, [-1.0, 0.0, 0.0], (0.0,)),
    ("Bard", fit.bard, [1.0] * 3, (8.214877307e-3, 17.42869333)),
    ("Gaussian", fit.gaussian, [0.4, 1.0, 0.0], (1.127932770e-8,)),
    ("Meyer", fit.meyer, [0.02, 4000.0, 250.0], (87.94585517,)),
    ("Gulf research and development", fit.gulf, [5.0, 2.5, 0.15], (0.0,)),
    ("Box three-dimensional", fit.box_three_dimensional, [0.0, 10.0, 20.0], (0.0,)),
    ("Powell singular", powell_singular, [3.0, -1.0, 0.0, 1.0], (0.0,)),
    ("Wood", wood, [-3.0, -1.0, -3.0, -1.0], (0.0,)),
    (
        "Kowalik and Osborne",
        fit.kowalik_osborne,
        [0.25, 0.39, 0.415, 0.39],
        (3.075056038e-4, 1.027343049e-3),
    ),
    ("Brown and Dennis", fit.brown_dennis, [25.0, 5.0, -5.0, -1.0], (85822.20163,)),
    ("Osborne 1", fit.osborne_1, [0.5, 1.5, -1.0, 0.01, 0.02], (5.464894697e-5,)),
    ("Biggs EXP6", fit.biggs_exp6, [1.0, 2.0, 1.0, 1.0, 1.0, 1.0], (0.0, 5.655649926e-3)),
    (
        "Osborne 2",
        fit.osborne_2,
        [1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5],
        (4.013773629e-2,),
    ),
    ("Watson", watson, [0.0] * 6, (2.287670054e-3,)),
    ("Extended Rosenbrock", rosenbrock, [-1.2, 1.0] * 5, (0.0,)),
    ("Extended Powell singular", powell_singular, [3.0, -1.0, 0.0, 1.0] * 3, (0.0,)),
    ("Penalty I", penalty_1, [1.0, 2.0, 3.0, 4.0], (2.249977501e-5,)),
    ("Penalty II", penalty_2, [0.5] * 4, (9.376293007e-6,)),
    ("Variably dimensioned", variably_dimensioned, [1 - t for t in TENTHS], (0.0,)),
    ("Trigonometric", trigonometric, [0.1] * 10, (0.0, 2.795056122e-5)),
    ("Brown almost-linear", brown_almost_linear, [0.5] * 10, (0.0, 1.0)),
    ("Discrete boundary value", discrete_boundary_value, [t * (t - 1) for t in ELEVENTHS], (0.0,)),
    (
        "Discrete integral equation",
        discrete_integral_equation,
        [t * (t - 1) for t in ELEVENTHS],
        (0.0,),
    ),
    ("Broyden tridiagonal", broyden_tridiagonal, [-1.0] * 10, (0.0,)),
    ("Broyden banded", broyden_banded, [-1.0] * 10, (0.0,)),
    ("Linear, full rank", linear_full_rank, [1.0] * 10, (10.0,)),
    ("Linear, rank 1", linear_rank_1, [1.0] * 10, (380 / 82,)),
    ("Linear, rank 1 with zero columns and rows", linear_rank_1_zeros, [1.0] * 10, (454 / 74,)),
    ("Chebyquad", chebyquad, [j / 9 for j in range(1, 9)], (3.516873726e-3,)),
)
PROBLEMS = tuple(
    Problem(number, name, residuals, torch.tensor(start, dtype=torch.float64), minima)
    for number, (name, residuals, start, minima) in enumerate(TABLE, start=1)
)

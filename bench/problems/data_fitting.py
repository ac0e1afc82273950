"""Moré, Garbow & Hillstrom 1981: the functions that fit a model to observations y at times t.

The numbers are the paper's, section 3.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

doubles = partial(torch.tensor, dtype=torch.float64)

BARD = doubles(
    [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
)
GAUSSIAN = doubles([0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989])
MEYER = doubles(
    [
        *(34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744),
        *(8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872),
    ]
)
KOWALIK_OSBORNE = doubles(
    [
        [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
        [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
    ]
)
OSBORNE_1 = doubles(
    [
        *(0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751),
        *(0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490),
        *(0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406),
    ]
)
OSBORNE_2 = doubles(
    [
        *(1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746),
        *(0.679, 0.608, 0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649),
        *(0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395),
        *(0.375, 0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653),
        *(0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739),
        *(0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054),
    ]
)


def count(m: int) -> Tensor:
    """1, 2, ..., m."""
    return torch.arange(1, m + 1, dtype=torch.float64)


def jennrich_sampson(x: Tensor) -> Tensor:
    """(6), m = 10: minimum at x₁ = x₂ = 0.2578."""
    i = count(10)
    x1, x2 = x.unbind()
    return 2 + 2 * i - (torch.exp(i * x1) + torch.exp(i * x2))


def bard(x: Tensor) -> Tensor:
    """(8): a rational fit, with a second minimum at infinity."""
    u = count(15)
    v = 16 - u
    w = torch.minimum(u, v)
    x1, x2, x3 = x.unbind()
    return BARD - (x1 + u / (v * x2 + w * x3))


def gaussian(x: Tensor) -> Tensor:
    """(9): the normal density to four decimals; the start all but solves it."""
    t = (8 - count(15)) / 2
    y = torch.cat((GAUSSIAN, GAUSSIAN[:-1].flip(0)))
    x1, x2, x3 = x.unbind()
    return x1 * torch.exp(-x2 * (t - x3) ** 2 / 2) - y


def meyer(x: Tensor) -> Tensor:
    """(10): a thermistor's resistance, with parameters six orders of magnitude apart."""
    t = 45 + 5 * count(16)
    x1, x2, x3 = x.unbind()
    return x1 * torch.exp(x2 / (t + x3)) - MEYER


def gulf(x: Tensor) -> Tensor:
    """(11), m = 99 as in the authors' Algorithm 566: at t = 1 the minimiser has no Hessian.

    The paper prints y mi x₂ for y − x₂.
    """
    t = count(99) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    x1, x2, x3 = x.unbind()
    return torch.exp(-(torch.abs(y - x2) ** x3) / x1) - t


def box_three_dimensional(x: Tensor) -> Tensor:
    """(12), m = 10: minima at (1, 10, 1), (10, 1, −1) and all along x₁ = x₂, x₃ = 0."""
    t = count(10) / 10
    x1, x2, x3 = x.unbind()
    return torch.exp(-t * x1) - torch.exp(-t * x2) - x3 * (torch.exp(-t) - torch.exp(-10 * t))


def kowalik_osborne(x: Tensor) -> Tensor:
    """(15): an enzyme's kinetics, a rational fit with a second minimum at infinity."""
    y, u = KOWALIK_OSBORNE
    x1, x2, x3, x4 = x.unbind()
    residuals: Tensor = y - x1 * (u**2 + u * x2) / (u**2 + u * x3 + x4)
    return residuals


def brown_dennis(x: Tensor) -> Tensor:
    """(16), m = 20: residuals too large for Gauss-Newton."""
    t = count(20) / 5
    x1, x2, x3, x4 = x.unbind()
    return (x1 + t * x2 - torch.exp(t)) ** 2 + (x3 + x4 * torch.sin(t) - torch.cos(t)) ** 2


def osborne_1(x: Tensor) -> Tensor:
    """(17): two decaying exponentials of close rates."""
    t = 10 * (count(33) - 1)
    x1, x2, x3, x4, x5 = x.unbind()
    return OSBORNE_1 - (x1 + x2 * torch.exp(-t * x4) + x3 * torch.exp(-t * x5))


def biggs_exp6(x: Tensor) -> Tensor:
    """(18), m = 13: three exponentials; minimum 0 at (1, 10, 1, 5, 4, 3)."""
    t = count(13) / 10
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    x1, x2, x3, x4, x5, x6 = x.unbind()
    return x3 * torch.exp(-t * x1) - x4 * torch.exp(-t * x2) + x6 * torch.exp(-t * x5) - y


def osborne_2(x: Tensor) -> Tensor:
    """(19): a decaying exponential and three bells."""
    t = (count(65) - 1) / 10
    model = x[0] * torch.exp(-t * x[4])
    for height, sharpness, centre in zip(x[1:4], x[5:8], x[8:11], strict=True):
        model = model + height * torch.exp(-((t - centre) ** 2) * sharpness)
    return OSBORNE_2 - model

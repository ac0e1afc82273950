"""What users of other optimizers complained of, asked of ours.

The numbers are those of a list of 22 complaints with their threads; those that are not here are
answered by other files beside this one, or are no optimizer's.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad.curvature import LinearOperator
from natgrad.flat import flatten
from natgrad.optim import (
    KFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)

DOUBLE = torch.float64


def minimised(make, residuals, start: Tensor, steps: int):
    """The points of so many steps on ½‖r(x)‖² from ``start``, and the optimizer."""
    x = start.clone().requires_grad_()
    optimizer = make(x)

    def closure():
        r = residuals(x)
        if isinstance(optimizer, LevenbergMarquardt):
            return r
        optimizer.zero_grad()
        loss = r.square().sum() / 2
        loss.backward()
        return loss

    points, refused = [x.detach().clone()], 0
    for _ in range(steps):
        optimizer.step(closure)
        points.append(x.detach().clone())
        refused = refused + 1 if torch.equal(points[-1], points[-2]) else 0
        if refused == 3:
            break
    return points, optimizer


def gauss_newton(residuals, x: Tensor):
    def operator() -> LinearOperator:
        J = torch.autograd.functional.jacobian(residuals, x.detach())
        return LinearOperator.from_dense(J.mT @ J)

    return operator


def of_residuals(residuals) -> dict[str, Any]:
    """Each optimizer that needs no layers."""
    return {
        "NaturalGradient": lambda x: NaturalGradient(
            [x], curvature=gauss_newton(residuals, x), max_kl=1e60, damping=1e-6
        ),
        "HessianFree": lambda x: HessianFree([x], curvature=gauss_newton(residuals, x)),
        "LevenbergMarquardt": lambda x: LevenbergMarquardt([x]),
        "TrustRegionNewton": lambda x: TrustRegionNewton([x]),
        "NonlinearCG": lambda x: NonlinearCG([x]),
    }


def steep(x: Tensor) -> Tensor:
    """exp(4 x), which overflows a few units from where it is of order one."""
    return torch.cat([(4 * x).exp() - 1, 1e-2 * x])


def rosenbrock(x: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


OPTIMIZERS = list(of_residuals(rosenbrock))
of_each = pytest.mark.parametrize("name", OPTIMIZERS)


# 1. LBFGS returns NaN: pytorch#5953. 14. NaN from strong_wolfe: miss-alignment#46
@of_each
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_01_steep_objectives_are_left_neither_for_nan_nor_for_worse(name, dtype):
    start = torch.tensor([3.0, -4.0, 8.0], dtype=dtype)
    points, _ = minimised(of_residuals(steep)[name], steep, start, steps=35)
    losses = [float(steep(x).double().square().sum()) for x in points]
    assert all(bool(torch.isfinite(x).all()) for x in points)
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 1e-6 * losses[0]


# 3. LBFGS differs between devices: pytorch#111508: here between precisions, for want of devices
# 15. LBFGS in float32 stops after ten iterations: deepxde#308, deepxde#1463
@of_each
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_03_15_float32_goes_to_the_minimum_that_float64_finds(name, scale):
    def residuals(x: Tensor) -> Tensor:
        return scale * rosenbrock(x)

    make = of_residuals(residuals)[name]
    if name in ("NaturalGradient", "HessianFree"):  # damping is in units of the loss
        make = {
            "NaturalGradient": lambda x: NaturalGradient(
                [x], curvature=gauss_newton(residuals, x), max_kl=1e6, damping=1e-6 * scale**2
            ),
            "HessianFree": lambda x: HessianFree(
                [x], curvature=gauss_newton(residuals, x), damping=0.1 * scale**2
            ),
        }[name]
    start = torch.tensor([-1.2, 1.0])
    points, _ = minimised(make, residuals, start, steps=60)
    assert float((points[-1] - 1).abs().max()) < 2e-3


# 9. Memory of a batch: BackPACK#238, curvlinops#193
@pytest.mark.parametrize("name", ["NaturalGradient", "HessianFree"])
def test_09_chunks_of_the_batch_take_the_same_step(name, train):
    # At a damping of 1 the quadratic is near enough to the loss that the last iterate is the best.
    # At 0.1 HessianFree walks back from it, led by differences of rtol in the loss.
    whole, chunked = (train(name, chunk_size=size, rtol=1e-10, damping=1.0) for size in (None, 2))
    for _ in range(3):
        whole.step()
        chunked.step()
        torch.testing.assert_close(whole.theta, chunked.theta, rtol=1e-6, atol=1e-9)


def degenerate(built, generator) -> dict[str, tuple[nn.Module, Tensor]]:
    """Networks and inputs with factors of low rank, of zeros, of large and small numbers."""

    def network() -> nn.Sequential:
        return built(lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)))

    def dead() -> nn.Module:
        network_ = network()
        with torch.no_grad():
            first: Any = network_[0]
            first.bias.fill_(-10.0)  # no unit of the first layer ever fires
        return network_

    x = torch.randn(7, 3, generator=generator, dtype=DOUBLE)
    return {
        "one sample seven times": (network(), x[:1].expand(7, 3).clone()),
        "inputs of zeros": (network(), 0 * x),
        "inputs of 1e8": (network(), 1e8 * x),
        "inputs of 1e-8": (network(), 1e-8 * x),
        "dead units": (dead(), x),
    }


CASES = ["one sample seven times", "inputs of zeros", "inputs of 1e8", "inputs of 1e-8"]
CASES += ["dead units"]


LAYERWISE = {
    "K-FAC": KFAC,
    "E-KFAC": partial(KFAC, corrected=True),
}


# 11. NaN where damping is below 1e-15: kfac-jax#183. 19. eigh failed to converge: RES4LYF#119
@pytest.mark.parametrize("damping", [1e-3, 1e-12, 1e-30])
@pytest.mark.parametrize("make", LAYERWISE.values(), ids=LAYERWISE)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_11_19_factors_of_any_kind_give_a_step_or_ask_for_damping(
    case, single, make, damping, built, generator
):
    model, x = degenerate(built, generator)[case]
    if single:
        model, x = model.float(), x.float()
    targets = torch.randint(0, 3, (7,), generator=generator)
    optimizer = make(model, likelihood="categorical", damping=damping, refresh_every=2)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), targets).backward()
        before, asks = flatten(model.parameters()), False
        try:
            optimizer.step()
        except ValueError as error:
            asks = "give a larger damping" in str(error)
            if not asks:
                raise
        after = flatten(model.parameters())
        if asks:
            assert damping < 1e-3
            assert torch.equal(before, after)
            break
        if optimizer.last_step.status.nonfinite:  # weights that grow with such inputs overflow
            assert single
            assert case == "inputs of 1e8"
            assert torch.equal(before, after)
            break
        if optimizer.last_step.status.name == "KL_EXCEEDED":  # a step of g / damping
            assert damping < 1e-3
            assert torch.equal(before, after)
            break
        assert optimizer.last_step.status.name in ("ACCEPTED", "CONVERGED")
        assert bool(torch.isfinite(after).all())


# 12. Parameters change though the line search fails: PyTorch-LBFGS#9
def test_12_a_loss_that_only_rises_moves_nothing(searching, train):
    training = train(searching)
    calls: list[Any] = []

    def closure():
        loss = training.closure()
        calls.append(None)
        if training.kind.residuals:
            return loss * len(calls)
        return loss + len(calls) - 1

    before = training.theta
    training.optimizer.step(closure)
    assert training.status == "NO_IMPROVEMENT"
    assert 1 < len(calls) <= 100
    assert torch.equal(training.theta, before)


# 13. The eigenbasis turns under its moments: HeavyBall#40, Emerging-Optimizers#266
@pytest.mark.parametrize("name", ["KFAC", "KFAC corrected"])
def test_13_refreshing_from_the_same_batch_changes_nothing(name, train):
    settings = {"samples": None, "momentum": 0.0, "refresh_every": 1, "max_kl": None}
    once, often = train(name, **settings), train(name, **settings, lr=0.0)
    for _ in range(5):  # where nothing moves, each refresh finds what the first has found
        often.plain_step()
    often.optimizer.param_groups[0]["lr"] = once.optimizer.param_groups[0]["lr"]
    once.plain_step()
    often.plain_step()
    torch.testing.assert_close(often.theta, once.theta, rtol=1e-9, atol=1e-12)


# 17. A wrapper without param_groups breaks schedulers: nfnets#29
def test_17_every_number_that_may_be_scheduled_is_in_the_groups(name, train):
    training = train(name)
    (group,) = training.optimizer.param_groups
    assert {"params", "lr"} <= set(group)
    assert set(training.optimizer.whole) <= set(group)
    assert set(group) - {"params"} == set(training.optimizer.defaults) - {"differentiable"}


METRICS = {
    "negative": torch.tensor([-1.0, -2.0, -3.0]),
    "indefinite": torch.tensor([1.0, -2.0, 3.0]),
    "negative by rounding": torch.tensor([1.0, 1.0, -1e-17]),
    "zero": torch.zeros(3),
    "singular": torch.tensor([1.0, 2.0, 0.0]),
}


# 20. The square root of a negative sᵀKs: rllab#24, tensorforce#26, sb3-contrib#38
@pytest.mark.parametrize("closure", [False, True], ids=["backward", "closure"])
@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("metric", METRICS)
def test_20_no_metric_gives_nan_or_ascent(metric, damping, closure):
    x = torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE, requires_grad=True)
    K = LinearOperator.from_dense(METRICS[metric].double().diag())
    optimizer = NaturalGradient([x], curvature=lambda: K, damping=damping)

    def loss_with_gradient() -> Tensor:
        optimizer.zero_grad()
        loss = x.square().sum() / 2
        loss.backward()
        return loss

    before, loss = x.detach().clone(), float(loss_with_gradient().detach())
    optimizer.step(loss_with_gradient if closure else None)
    assert optimizer.last_step is not None
    status = optimizer.last_step.status.name
    assert status in ("ACCEPTED", "NOT_DESCENT", "NO_IMPROVEMENT")
    assert bool(torch.isfinite(x).all())
    if status == "ACCEPTED":
        assert float((x.detach() - before) @ before) < 0  # downhill
        assert not closure or float(x.detach().square().sum() / 2) < loss
    else:
        assert torch.equal(x, before)


# 20. An epsilon added to sᵀKs, which is not of its scale: boyu#108
@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1.0, 1e8, 1e20])
def test_20_the_bound_on_the_kl_is_met_at_every_scale(scale):
    x = torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE, requires_grad=True)
    K = scale * torch.tensor([1.0, 2.0, 5.0], dtype=DOUBLE)
    optimizer = NaturalGradient(
        [x],
        curvature=lambda: LinearOperator.from_dense(K.diag()),
        damping=0.0,
        max_kl=1e-2,
        lr=math.inf,
        rtol=1e-10,
    )
    before = x.detach().clone()
    x.square().sum().backward()
    optimizer.step()
    d = x.detach() - before
    assert float(d @ (K * d)) / 2 == pytest.approx(1e-2, rel=1e-3)  # x + d is rounded
    assert optimizer.last_step is not None
    assert optimizer.last_step.predicted_kl == pytest.approx(1e-2, rel=1e-6)


# 21. A Hessian for every rejected step: scipy#12503
def test_21_rejected_candidates_cost_no_product():
    start = torch.tensor([-1.2, 1.0], dtype=DOUBLE)
    reports = []
    for radius in (1e-2, 1e4):
        _, optimizer = minimised(
            lambda x, radius=radius: TrustRegionNewton([x], radius=radius, rtol=1e-8),
            rosenbrock, start, steps=2,
        )  # fmt: skip
        reports.append(optimizer.last_step)
    short, long = reports
    assert short.evaluations == 2
    assert long.evaluations > 2
    assert long.products <= 2 + 1  # as many as there are dimensions, and one to verify


# 22. A warning where few iterations are asked for: gpytorch#1557
@pytest.mark.parametrize("name", ["NaturalGradient", "HessianFree"])
def test_22_few_iterations_are_a_choice(name, train):
    training = train(name, max_iterations=2)
    for _ in range(4):  # warnings are errors
        training.step()
        assert training.status == "ACCEPTED"
        assert training.optimizer.last_step.iterations <= 2


# 22. A Cholesky factor of NaN where residuals repeat: netket#2157
@pytest.mark.parametrize("method", ["dense", "sample_space", "cg"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("shape", [(3, 6), (6, 3)], ids=["wide", "tall"])
def test_22_residuals_that_repeat_are_solved(shape, dtype, method, generator):
    m, n = shape
    half = torch.randn(max(1, m // 2), n, generator=generator, dtype=dtype)
    A = torch.cat([half, half, half])[:m]
    A[:, 1] = A[:, 0]
    solution = torch.randn(n, generator=generator, dtype=dtype)

    def residuals(x: Tensor) -> Tensor:
        return A @ (x - solution)

    start = torch.zeros(n, dtype=dtype)
    points, _ = minimised(
        lambda x: LevenbergMarquardt([x], solver=method), residuals, start, steps=30
    )
    assert bool(torch.isfinite(points[-1]).all())
    first, last = (float(residuals(x).norm()) for x in (points[0], points[-1]))
    assert last < 1e-5 * first

"""What natgrad ships, as subjects of its verification kit: tests and verdicts check these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import natgrad
from natgrad.curvature import LinearOperator
from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)
from natgrad.solvers import Solution, cholesky
from natgrad.testing import subject
from natgrad.testing.subjects.line_search import LineSearch
from natgrad.testing.subjects.minimiser import Answer, Minimiser
from natgrad.testing.subjects.optimizer import PLAIN, Optimizer
from natgrad.testing.subjects.trust_region_solver import TrustRegionSolver
from rl_plugins import gae

# --- solvers


def lanczos(A: Any, b: Tensor, *, rtol: float) -> Solution[Tensor]:
    return natgrad.lanczos(A, b, rtol=rtol).solve()


def gltr(A: Any, g: Tensor, radius: float, *, rtol: float) -> Solution[Tensor]:
    return natgrad.lanczos(A, -g, rtol=rtol).solve(radius=radius)


class Rows:
    """What sample_space asks of a Jacobian."""

    def __init__(self, J: Tensor) -> None:
        self.J = J

    def to_dense(self) -> Tensor:
        return self.J @ self.J.mT

    def transpose(self, u: Tensor) -> Tensor:
        return self.J.mT @ u


def sample_space(
    J: Tensor, r: Tensor, damping: float, previous: Tensor | None = None, momentum: float = 0.0
) -> Tensor:
    start = 0.0 * J[0] if previous is None else momentum * previous
    return start + natgrad.sample_space(Rows(J)).solve(r - J @ start, damping=damping).x


def least_squares(J: Tensor, r: Tensor, damping: float) -> Solution[Tensor]:
    return natgrad.least_squares(J).solve(r, damping=damping)


SOLVERS = {
    "solver": [
        subject(natgrad.cg, "solver"),
        subject(natgrad.minres, "solver"),
        subject(natgrad.cholesky, "solver"),
        subject(lanczos, "solver", ["krylov"]),
    ],
    "trust-region-solver": [
        TrustRegionSolver.of(natgrad.steihaug, path=natgrad.SteihaugPath),
        subject(gltr, "trust-region-solver", ["exact", "krylov"]),
    ],
    "damped-least-squares": [
        subject(sample_space, "damped-least-squares"),
        subject(least_squares, "damped-least-squares"),
    ],
    "line-search": [
        subject(natgrad.backtracking, "line-search"),
        LineSearch.along(natgrad.approximate_wolfe),
    ],
    "step-size": [subject(natgrad.step_size, "step-size")],
    "advantages": [subject(gae, "advantages")],
}
SOLVERS = {
    kind: [replace(each, name=f"natgrad {each.name.rpartition('.')[2]}") for each in subjects]
    for kind, subjects in SOLVERS.items()
}

# --- minimisers


def of_optimizer(kind: Any) -> Minimiser:
    """Steps until one is refused."""

    def minimise(value: Any, start: Tensor) -> Answer:
        x = start.clone().requires_grad_()
        optimizer = kind([x])

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = value(x)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(50):
            optimizer.step(closure)
            status = optimizer.last_step.status.name
            if status != "ACCEPTED" or optimizer.last_step.loss < -20:  # without a bound below
                break
        return Answer(x.detach(), status in ("CONVERGED", "NO_IMPROVEMENT"), status)

    return Minimiser(f"natgrad {kind.__name__}", minimise)


MINIMISERS = [of_optimizer(TrustRegionNewton), of_optimizer(NonlinearCG)]

# --- optimizers


def exactly(A: LinearOperator, b: Tensor) -> Solution[Tensor]:
    return cholesky(A.to_dense(), b, rtol=1e-12)


def gauss_newton(model: Any) -> Callable[[], LinearOperator]:
    """The curvature of an objective that is ½‖r‖²; the identity of one that is not."""

    def operator() -> LinearOperator:
        if model.objective.kind == "logarithm":
            return LinearOperator.from_dense(torch.eye(1, dtype=torch.float64))
        residuals = model.objective.residual_vector
        J = torch.autograd.functional.jacobian(residuals, model.x.detach())  # type: ignore[no-untyped-call]
        return LinearOperator.from_dense(J.mT @ J)

    return operator


ALL = {"deterministic", "guarded", "status"}
SEARCH = {"closure", "search", "monotone"}
ANY = {"objectives"}
NEWTON = {"exact curvature", *ANY, *ALL}
MAXIMIZE = {"maximize", "groups"}
CATEGORICAL = ("categorical",)
SQUARED = ("squared",)
LAYERED = (*PLAIN, "unused")
KFAC_OFFERS = frozenset({"closure", "plain", "weight decay", *MAXIMIZE, *ALL})
OPTIMIZERS = [
    Optimizer(
        "NaturalGradient",
        lambda model: NaturalGradient(model, likelihood="categorical", max_iterations=8),
        frozenset({"plain", *SEARCH, *MAXIMIZE, *ALL}), CATEGORICAL,
    ),
    Optimizer(
        "NaturalGradient, undamped",
        lambda model: NaturalGradient(
            model, likelihood="categorical", damping=0.0, solver=exactly
        ),
        frozenset({"plain", "natural gradient", *SEARCH, *ALL}), CATEGORICAL, networks=(),
    ),
    Optimizer(
        "NaturalGradient, of a metric",
        lambda model: NaturalGradient(
            model.parameters(), curvature=gauss_newton(model), max_kl=1e30, damping=0.0, rtol=1e-12
        ),
        frozenset({"plain", *NEWTON}), networks=(),
    ),
    Optimizer(
        "HessianFree", partial(HessianFree, max_iterations=8),
        frozenset({"plain", *SEARCH, *MAXIMIZE, *ALL}), CATEGORICAL,
    ),
    Optimizer(
        "HessianFree, of a metric",
        lambda model: HessianFree(
            model.parameters(), curvature=gauss_newton(model), damping=1e-12, rtol=1e-12,
            progress=1e-14,
        ),
        frozenset({*SEARCH, *NEWTON}), networks=(),
    ),
    Optimizer(
        "LevenbergMarquardt", LevenbergMarquardt,
        frozenset({"plain", "groups", *SEARCH, *ALL}), SQUARED,
    ),
    Optimizer(
        "LevenbergMarquardt, of residuals", lambda model: LevenbergMarquardt(model.parameters()),
        frozenset({
            "residuals", "search", "monotone", "minimiser", "groups", "scale invariant", *ANY, *ALL
        }), SQUARED,
    ),
    Optimizer(
        "LevenbergMarquardt, unbounded",
        lambda model: LevenbergMarquardt(model.parameters(), radius=float("inf")),
        # Affine coordinates do matter to it: a step refused is shortened in the norm of its own.
        frozenset({"residuals", *NEWTON}), SQUARED, networks=(),
    ),
    Optimizer(
        "TrustRegionNewton", lambda model: TrustRegionNewton(model.parameters(), radius=0.5),
        frozenset({*SEARCH, "minimiser", "scale invariant", *MAXIMIZE, *ANY, *ALL}),
    ),
    Optimizer(
        "TrustRegionNewton, of its own radius",
        lambda model: TrustRegionNewton(model.parameters()),
        frozenset({*SEARCH, "minimiser", *ANY, *ALL}), networks=(),
    ),
    Optimizer(
        "TrustRegionNewton, unbounded",
        lambda model: TrustRegionNewton(model.parameters(), radius=1e30, rtol=1e-12),
        frozenset({"closure", *NEWTON}), networks=(),
    ),
    Optimizer(
        "NonlinearCG", lambda model: NonlinearCG(model.parameters()),
        frozenset({*SEARCH, "minimiser", "scale invariant", "maximize", *ANY, *ALL}),
    ),
    Optimizer(
        "KFAC", partial(KFAC, likelihood="categorical", lr=0.05, refresh_every=3),
        KFAC_OFFERS, CATEGORICAL, LAYERED,
    ),
    Optimizer(
        "KFAC, corrected",
        partial(KFAC, likelihood="categorical", lr=0.05, refresh_every=3, corrected=True),
        KFAC_OFFERS, CATEGORICAL, LAYERED,
    ),
    Optimizer(
        "AdaptiveKFAC", partial(AdaptiveKFAC, likelihood="categorical", refresh_every=3),
        frozenset({"closure", "plain", "monotone", *MAXIMIZE, *ALL}), CATEGORICAL, LAYERED,
    ),
]  # fmt: skip

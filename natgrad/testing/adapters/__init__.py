"""Subjects by name: MODULE:NAME loaded, and seen through the adapter that knows it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from natgrad.testing.check import Kind

# What a function that follows the contract promises beyond its signature, by where it is defined.
TRAITS: dict[str, tuple[str, ...]] = {
    "natgrad.solvers.cg:cg": ("columns", "direction"),
    "natgrad.solvers.minres:minres": ("columns", "indefinite", "least residual"),
    "natgrad.solvers.cholesky:cholesky": ("columns", "direction"),
    "natgrad.trust_region.approximate_wolfe:approximate_wolfe": ("wolfe",),
}
# (kind, prefix of "module:name" as defined): the module here with ``adapt(name, object)``.
ADAPTERS: dict[tuple[Kind, str], str] = {
    (Kind.SOLVER, "scipy.sparse.linalg."): "scipy",
    (Kind.SOLVER, "linear_operator.utils.linear_cg:"): "linear_operator",
    (Kind.SOLVER, "sb3_contrib.common.utils:"): "sb3_contrib",
    (Kind.CURVATURE, "curvlinops."): "curvlinops",
    (Kind.KRONECKER, "curvlinops."): "curvlinops",
    (Kind.OPTIMIZER, "torch.optim."): "torch_optim",
    (Kind.OPTIMIZER, "torchmin.optim."): "torchmin",
    (Kind.MINIMISER, "torchmin.minimize:"): "torchmin",
}
SUBJECTS: dict[Kind, str] = {
    Kind.OPERATOR: "operator:Operator",
    Kind.CURVATURE: "curvature:Curvature",
    Kind.KRONECKER: "curvature:Kronecker",
    Kind.SOLVER: "solver:Solver",
    Kind.DAMPED_LEAST_SQUARES: "damped_least_squares:DampedLeastSquares",
    Kind.TRUST_REGION_SOLVER: "trust_region_solver:TrustRegionSolver",
    Kind.STEP_SIZE: "step_size:StepSizeRule",
    Kind.LINE_SEARCH: "line_search:LineSearch",
    Kind.OPTIMIZER: "optimizer:Optimizer",
    Kind.MINIMISER: "minimiser:Minimiser",
    Kind.ADVANTAGES: "advantages:AdvantageEstimator",
}


def load(target: str) -> Any:
    """The object named MODULE:NAME. Raises ``ValueError`` for another form, ``ImportError`` and
    ``AttributeError`` where there is none."""
    module, separator, name = target.partition(":")
    if not separator or not module or not name:
        raise ValueError(f"expected MODULE:NAME, such as scipy.sparse.linalg:cg, got {target!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what a peer imports
        found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def subject(thing: Any, kind: Kind | str, traits: Iterable[str] = ()) -> Any:
    """``thing`` as a subject of that kind: itself if it is one, through an adapter where one knows
    it, else by its signature and ``traits``, which the class of the subject lists."""
    kind = Kind(kind)
    if hasattr(thing, "offers"):
        return thing
    defined = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__name__', '')}"
    for (known, prefix), adapter in ADAPTERS.items():
        if known is kind and defined.startswith(prefix):
            module = importlib.import_module(f"natgrad.testing.adapters.{adapter}")
            return module.adapt(thing.__name__, thing)
    module_name, _, class_name = SUBJECTS[kind].partition(":")
    module = importlib.import_module(f"natgrad.testing.subjects.{module_name}")
    of: Callable[..., Any] = getattr(module, class_name).of
    given = (*TRAITS.get(defined, ()), *traits)
    if kind is Kind.CURVATURE:
        return _curvature(of, thing, given)
    return of(thing, given) if given else of(thing)


def _curvature(of: Callable[..., Any], thing: Any, traits: tuple[str, ...]) -> Any:
    from natgrad.testing.truth import TRUTHS

    claimed = [trait for trait in traits if trait in TRUTHS]
    if len(claimed) != 1:
        raise ValueError(
            f"a curvature operator claims to be one of {sorted(TRUTHS)}: name it among the "
            f"traits, got {sorted(traits)}"
        )
    return of(thing, claimed[0], [trait for trait in traits if trait not in TRUTHS])

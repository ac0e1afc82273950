"""Objects loaded by MODULE:NAME, and made subjects by the adapter for their package."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from natgrad.testing.check import Kind

# Traits of functions that need no adapter, beyond those that their signatures tell.
TRAITS: dict[str, tuple[str, ...]] = {
    "natgrad.solvers.cg:cg": ("columns", "direction"),
    "natgrad.solvers.minres:minres": ("columns", "indefinite", "least residual"),
    "natgrad.solvers.cholesky:cholesky": ("columns", "direction"),
    "natgrad.trust_region.approximate_wolfe:approximate_wolfe": ("wolfe",),
}
# (kind, prefix of "module:name" where it is defined): the module with ``adapt(name, object)``.
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
    """Import an object by name.

    Parameters
    ----------
    target
        MODULE:NAME, such as scipy.sparse.linalg:cg; NAME may have dots.

    Returns
    -------
    object
        The object.

    Raises
    ------
    ValueError
        If ``target`` has another form.
    ImportError, AttributeError
        If there is no such module, or no such name in it.
    """
    module, separator, name = target.partition(":")
    if not separator or not module or not name:
        raise ValueError(f"expected MODULE:NAME, such as scipy.sparse.linalg:cg, got {target!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised by the modules that it imports
        found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def subject(thing: Any, kind: Kind | str, traits: Iterable[str] = ()) -> Any:
    """Make a subject of an object, for the checks of a kind.

    Parameters
    ----------
    thing
        A subject, which is returned as it is; an object of a package that has an adapter; or a
        callable that follows the contract of the kind's class in :mod:`natgrad.testing.subjects`.
    kind
        The kind, or its name on the command line.
    traits
        What ``thing`` promises beyond its signature, as listed in the kind's class; adapters know
        the traits and ignore these. Name one to add the checks that need it.

    Returns
    -------
    object
        An instance of the kind's class in :mod:`natgrad.testing.subjects`.

    Raises
    ------
    ValueError
        If there is no such kind, or a curvature operator's traits do not name its matrix.
    """
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

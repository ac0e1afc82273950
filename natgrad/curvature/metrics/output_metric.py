"""The metric M of an output space, and the registry of the families that have one.

For outputs y of a network (the parameters of a distribution, or what a loss takes), curvature in θ
is the mean over the batch of Jᵀ M J. For a distribution M = E[∇_y log p ∇_y log pᵀ], its Fisher
matrix in its own parameters. A family is added from outside with :func:`register_metric`, like
torch's ``register_kl``; one with a registered KL needs no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor
from torch.distributions import Distribution

from natgrad.curvature.metrics.divergence import NoHessian, divergence_hessian

Tensors = tuple[Tensor, ...]
Family = TypeVar("Family", bound=Distribution)
# One distribution, or independent ones: the actions of a Tuple or a Dict space.
Distributions = Distribution | Sequence["Distributions"] | Mapping[str, "Distributions"]


@dataclass(frozen=True)
class OutputMetric:
    """``multiply(u)`` is M u, sample by sample, for tangents u shaped like ``outputs``.

    ``samples`` is what a mean divides by; None for the length of the first output. Weights scale
    rows of M that do not interact: they are shaped like the first ``weight_dims`` dimensions of
    the outputs (None for any number), leaving out ``class_dim``, along which M mixes.
    """

    outputs: Tensors
    multiply: Callable[[Tensors], Tensors]
    samples: float | None = None
    weight_dims: int | None = None
    class_dim: int | None = None


_METRICS: dict[type[Distribution], Callable[..., OutputMetric]] = {}


def register_metric(
    family: type[Family],
) -> Callable[[Callable[[Family], OutputMetric]], Callable[[Family], OutputMetric]]:
    """Decorator: the function gives the :class:`OutputMetric` of distributions of ``family``.

    Subclasses inherit it, nearest class first. ``outputs`` must be tensors that carry the graph,
    their leading dimensions the batch shape; inside ``multiply`` use detached values.
    """

    def register(metric: Callable[[Family], OutputMetric]) -> Callable[[Family], OutputMetric]:
        _METRICS[family] = metric
        return metric

    return register


def output_metric(distribution: Distributions) -> OutputMetric:
    """The metric of a distribution, or of independent ones in a sequence or mapping (nested too).

    By its family, nearest class first; else the Hessian of its registered KL in output space.
    Raises ``TypeError`` where neither exists, or where that Hessian is not its Fisher matrix.
    """
    parts = _components(distribution)
    if parts is not None:
        return _product([output_metric(part) for part in parts])
    assert isinstance(distribution, Distribution)
    for family in type(distribution).__mro__:
        if family in _METRICS:
            return _METRICS[family](distribution)
    return metric_of_divergence(distribution)


def metric_of_divergence(distribution: Distribution) -> OutputMetric:
    """The Hessian of KL(p ‖ q) in q's own parameters at q = p: a family without a closed form."""
    try:
        return OutputMetric(*divergence_hessian(distribution))
    except NoHessian as error:
        known = ", ".join(sorted(family.__name__ for family in _METRICS))
        raise TypeError(
            f"no Fisher metric for {type(distribution).__name__}: it is none of {known}, and "
            f"{error}. Add one with natgrad.curvature.register_metric"
        ) from error


def batch_shape(distribution: Distributions) -> tuple[int, ...]:
    """The batch shape of a distribution; independent ones must agree on theirs."""
    parts = _components(distribution)
    if parts is None:
        assert isinstance(distribution, Distribution)
        return tuple(distribution.batch_shape)
    shapes = {batch_shape(part) for part in parts}
    if len(shapes) != 1:
        raise ValueError(
            "independent distributions must have one batch shape, got "
            f"{sorted(shapes)}; wrap event dimensions in torch.distributions.Independent"
        )
    return shapes.pop()


def _components(distribution: Distributions) -> list[Distributions] | None:
    """The independent parts of a product; None for one distribution."""
    if isinstance(distribution, Distribution):
        return None
    if isinstance(distribution, Mapping):
        return list(distribution.values())
    if isinstance(distribution, (list, tuple)):
        return list(distribution)
    raise TypeError(
        "expected a torch.distributions.Distribution, or a list, tuple or mapping of them, got "
        f"{type(distribution).__name__}; wrap logits as Categorical(logits=...)"
    )


def _product(parts: list[OutputMetric]) -> OutputMetric:
    # Scores of independent components are uncorrelated: M is block diagonal.
    counts = [len(part.outputs) for part in parts]

    def multiply(tangents: Tensors) -> Tensors:
        products: list[Tensor] = []
        start = 0
        for part, count in zip(parts, counts, strict=True):
            products += part.multiply(tangents[start : start + count])
            start += count
        return tuple(products)

    return OutputMetric(tuple(output for part in parts for output in part.outputs), multiply)

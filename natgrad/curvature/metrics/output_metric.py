"""The metric M of an output space, and the registry of distribution families with closed forms.

For outputs y of a network (the parameters of a distribution, or the argument of a loss), curvature
in θ is the mean over the batch of Jᵀ M J. For a distribution, M = E[∇_y log p ∇_y log pᵀ] is its
Fisher matrix in its own parameters. :func:`register_metric` adds a family, as torch's
``register_kl`` does; a family with a registered KL works without it.
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
# One distribution, or independent ones, such as the actions of a Tuple or a Dict space.
Distributions = Distribution | Sequence["Distributions"] | Mapping[str, "Distributions"]


@dataclass(frozen=True)
class OutputMetric:
    """The outputs of a network and the metric M of their space, as a product u ↦ M u.

    Attributes
    ----------
    outputs
        The outputs, tensors that carry their graph.
    multiply
        Maps tangents u, one for each output and of its shape, to M u. M must not mix samples.
    samples
        The divisor of a mean. None: the length of the first output.
    weight_dims
        How many leading dimensions of the outputs weights may have. Set it if M mixes the later
        ones, since weights can scale only rows of M that do not interact. None: all.
    class_dim
        A dimension along which M mixes, such as that of classes; the shape of weights leaves it
        out. None: no such dimension.
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
    """Make a decorator that registers a function as the metric of a distribution family.

    Parameters
    ----------
    family
        The class of distributions. Subclasses inherit the metric; the nearest registered class
        counts.

    Returns
    -------
    callable
        The decorator. It takes a function from a distribution to its :class:`OutputMetric`, whose
        ``outputs`` must carry the graph, with the batch shape as leading dimensions, and whose
        ``multiply`` must use detached values.
    """

    def register(metric: Callable[[Family], OutputMetric]) -> Callable[[Family], OutputMetric]:
        _METRICS[family] = metric
        return metric

    return register


def output_metric(distribution: Distributions) -> OutputMetric:
    """Return the Fisher metric of a distribution in the space of its own parameters.

    Parameters
    ----------
    distribution
        A distribution, or independent ones in a sequence or mapping, nested too.

    Returns
    -------
    OutputMetric
        The one registered for its family, nearest class first; else the Hessian of its registered
        KL divergence.

    Raises
    ------
    TypeError
        If neither exists, or if that Hessian is not the Fisher matrix.
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
    """Return the Hessian of KL(p ‖ q) in q's parameters at q = p, for families without closed form.

    Parameters
    ----------
    distribution
        p, of a family with a registered KL divergence.

    Raises
    ------
    TypeError
        If it has none, or if that Hessian is not the Fisher matrix.
    """
    try:
        return OutputMetric(*divergence_hessian(distribution))
    except NoHessian as error:
        known = ", ".join(sorted(family.__name__ for family in _METRICS))
        raise TypeError(
            f"no Fisher metric for {type(distribution).__name__}: it is none of {known}, and "
            f"{error}. Add one with natgrad.curvature.register_metric"
        ) from error


def batch_shape(distribution: Distributions) -> tuple[int, ...]:
    """Return the batch shape of a distribution, or the common one of independent distributions.

    Parameters
    ----------
    distribution
        A distribution, or independent ones in a sequence or mapping, nested too.

    Raises
    ------
    ValueError
        If independent distributions have different batch shapes.
    TypeError
        If it is none of these.
    """
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
    """Return the independent parts of a product; None for one distribution."""
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

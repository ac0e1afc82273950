"""The named likelihoods and losses: functions of a model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from natgrad.curvature.metrics import (
    Distributions,
    OutputMetric,
    binary_cross_entropy,
    cross_entropy,
    squared_error,
)

Likelihood = Callable[[Any], Distributions]
Metric = Callable[[Any], OutputMetric]


# Without validation: the step's report names NaN, and validation waits for the device.
def _categorical(logits: Tensor) -> Distributions:
    if logits.ndim > 2:
        raise ValueError(
            f"outputs of shape {tuple(logits.shape)} do not say which dimension holds the classes: "
            "pass likelihood=lambda y: Categorical(logits=y) where it is the last one, "
            "logits=y.movedim(1, -1) where it is dimension 1, as in F.cross_entropy"
        )
    return Categorical(logits=logits, validate_args=False)


def _bernoulli(logits: Tensor) -> Distributions:
    return _one_event(Bernoulli(logits=logits, validate_args=False))


def _normal(mean: Tensor) -> Distributions:
    return _one_event(Normal(mean, mean.new_ones(()), validate_args=False))


def _one_event(elements: Distribution) -> Distributions:
    """Each element along dimension 0 as one event."""
    inner = max(len(elements.batch_shape) - 1, 0)
    return Independent(elements, inner, validate_args=False)


def _itself(distribution: Any) -> Distributions:
    found: Distributions = distribution
    return found


LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "normal": _normal,
}
# Code that an error message shows for a part of the outputs.
EXAMPLES = {
    "categorical": "torch.distributions.Categorical(logits={})",
    "bernoulli": "torch.distributions.Bernoulli(logits={})",
    "normal": "torch.distributions.Normal({}, 1.0)",
    "cross_entropy": "natgrad.curvature.metrics.cross_entropy({})",
    "binary_cross_entropy": "natgrad.curvature.metrics.binary_cross_entropy({})",
    "squared_error": "natgrad.curvature.metrics.squared_error({})",
}
_SQUARES = ("mse", "mse_loss", "l2", "gaussian", "squared_error", "normal")
_BINARY = ("bce", "binary", "bce_with_logits", "sigmoid", "binary_cross_entropy", "bernoulli")
_CLASSES = ("ce", "nll", "softmax", "multinomial", "cross_entropy", "crossentropy", "categorical")
OTHER_NAMES = {
    "normal": _SQUARES,
    "squared_error": _SQUARES,
    "bernoulli": _BINARY,
    "binary_cross_entropy": _BINARY,
    "categorical": _CLASSES,
    "cross_entropy": _CLASSES,
}
LOSSES: dict[str, Metric] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
}


def likelihood_of(likelihood: str | Likelihood | None) -> Likelihood:
    """The function from outputs to a distribution; None for models that return one.

    "categorical" takes logits (N, C), "bernoulli" logits (N, ...), "normal" means (N, ...) of unit
    variance; N elements, everything else of one element is one event. Raises ``ValueError`` for
    other names.
    """
    if likelihood is None:
        return _itself
    if callable(likelihood):
        return likelihood
    return NamedMeaning("likelihood", likelihood, _named(likelihood, LIKELIHOODS, "likelihood"))


def metric_of(loss: str | Metric) -> Metric:
    """The function from outputs to the metric of a loss, with torch's own conventions for means:
    "cross_entropy" (classes along dimension 1), "binary_cross_entropy" (with logits),
    "squared_error". Raises ``ValueError`` for other names."""
    if callable(loss):
        return loss
    return NamedMeaning("loss", loss, _named(loss, LOSSES, "loss"))


@dataclass(frozen=True)
class NamedMeaning:
    """What outputs that are one tensor mean, by a name: ``act`` for such outputs, and an error that
    names the cure for others."""

    argument: str
    name: str
    act: Callable[[Tensor], Any]

    def __call__(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            return self.act(outputs)
        kind, example = type(outputs).__name__, EXAMPLES[self.name].format(_part(outputs))
        if isinstance(outputs, Mapping):
            kind = f"{kind} of {sorted(map(str, outputs))}"
        raise TypeError(
            f"{self.argument}={self.name!r} takes outputs that are one tensor, but the model "
            f"returned a {kind}; say which part is meant: {self.argument}=lambda outputs: {example}"
        )


def _part(outputs: Any) -> str:
    """The code for the part of a model's outputs that is most likely meant."""
    if isinstance(outputs, Mapping):
        tensors = [str(key) for key, value in outputs.items() if isinstance(value, Tensor)]
        return f"outputs[{'logits' if 'logits' in outputs else (tensors or ['logits'])[0]!r}]"
    return "outputs[0]" if isinstance(outputs, (tuple, list)) else "outputs.logits"


def _named(name: str, known: dict[str, Any], argument: str) -> Any:
    if name not in known:
        names = ", ".join(map(repr, known))
        meant = next((k for k in known if str(name).lower() in OTHER_NAMES.get(k, ())), None)
        raise ValueError(
            f"{argument} must be one of {names}, or a function of the outputs; got {name!r}"
            + (f", which is {meant!r} here" if meant else "")
        )
    return known[name]

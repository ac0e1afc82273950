"""Mistakes of a training loop that leave no trace in its numbers; each is told once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from natgrad.optim.contradictions import contradictions
from natgrad.optim.likelihoods import NamedMeaning
from natgrad.optim.observed_model import ObservedModel

# The gradient's growth in one step that counts as too much, and how many such steps in a row.
GROWTH, GROWING = 4.0, 3
# From a warning here to the user's call of step(): the method, step(), and two wrappers of torch.
CALLER = 6


class LoopWarnings:
    """Warns, once for each kind of mistake, of what an optimizer notices in the loop around it."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._last, self._count = 0.0, 0

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(text, stacklevel=CALLER)

    def no_gradient(self, parameters: Sequence[Tensor]) -> None:
        """Warn of a step in which no parameter has a gradient."""
        if not any(parameter.requires_grad for parameter in parameters):
            text = (
                f"all {len(parameters)} parameters are frozen, and step() changes none of them: "
                "set requires_grad=True for those to train"
            )
        else:
            text = (
                "step() found no gradient, every .grad is None, and changed no parameter: call "
                "loss.backward() before it and zero_grad() after it, or pass a closure that does"
            )
        self._tell("gradient", text)

    def loss_not_returned(self) -> None:
        """Warn of a closure that computed gradients and returned None."""
        self._tell(
            "loss",
            "the closure computed gradients but returned None: without its loss no candidate is "
            "measured. End the closure by `return loss`",
        )

    def see_batches(self, observed: ObservedModel, meaning: object) -> None:
        """Compare the first gradient of a loss in the model's outputs with what the outputs mean.

        ``meaning`` is what the optimizer makes of the outputs; only those that go by a name are
        known well enough to contradict a loss.
        """
        if observed.examined:
            return
        observed.examined = not isinstance(meaning, NamedMeaning)
        for batch in observed.batches:
            gradient = batch.output_gradient
            if batch.output is not None and gradient is not None and bool(gradient.any()):
                observed.examined = True
                if isinstance(meaning, NamedMeaning):
                    output, argument, name = batch.output, meaning.argument, meaning.name
                    for text in contradictions(argument, name, output, gradient):
                        self._tell(text, text)
                return

    def see_gradient(self, norm: float) -> None:
        """Warn of steps that nothing measured and that made the gradient larger and larger.

        ``norm`` is the gradient's at the start of such a step.
        """
        self._count = self._count + 1 if self._last and norm > GROWTH * self._last else 0
        self._last = norm
        if self._count == GROWING:
            self._tell(
                "growth",
                f"{GROWING} steps in a row made the gradient more than {GROWTH:g} times as large, "
                f"to a norm of {norm:.3g}: the steps are too long, and without a closure that "
                "computes the loss nothing measures them. Is the loss a sum, where the curvature "
                'is that of a mean? Use reduction="mean", or lr=1/N; or the curvature another '
                "loss's? step(closure) goes back where the loss rises",
            )


class GradientMarks:
    """The gradients at one time, to tell whether a backward pass has written to ``.grad`` since.

    Weak references: gradients that zero_grad() frees must not stay in memory, while the id of one
    may be that of the next.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._before = [None if p.grad is None else TensorWeakRef(p.grad) for p in parameters]
        self._versions = [None if p.grad is None else p.grad._version for p in parameters]

    def written(self) -> bool:
        """Whether a gradient is another tensor now, or was written to."""
        for p, before, version in zip(self._parameters, self._before, self._versions, strict=True):
            if p.grad is None or before is None:
                if p.grad is not None:
                    return True
            elif before() is not p.grad or p.grad._version != version:
                return True
        return False

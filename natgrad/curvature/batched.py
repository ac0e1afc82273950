"""Curvature as a mean over data: from one graph that is kept, or from chunks recorded anew."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from natgrad.autodiff.data import length, subset, take
from natgrad.autodiff.differentiation import NotTwiceDifferentiable
from natgrad.autodiff.function_module import Parameters, resolved
from natgrad.autodiff.side_effects import Forward, preserved_buffers
from natgrad.curvature.checks import checked_weights
from natgrad.curvature.operator import LinearOperator
from natgrad.flat import Slots

Result = TypeVar("Result")


class RecordedBatch(Protocol):
    """The curvature of one batch, summed over its samples, with its graph."""

    @property
    def samples(self) -> float:
        """The divisor of the mean: a count, or a sum of weights."""

    @property
    def reached(self) -> list[Tensor]:
        """The parameters that it depends on."""

    def product(self, vector: Tensor) -> Tensor:
        """Compute the curvature, summed over samples, times a vector (n,)."""


class BatchedOperator(LinearOperator):
    """K v = (Σ_b K_b v) / Σ_b samples_b over batches b; subclasses define K_b by ``_record``.

    Parameters
    ----------
    source
        The outcome of a forward pass with its graph, which is kept, or the forward function itself.
        A function has no side effects: buffers and generators stay unchanged, and every product
        draws the same random numbers, from the state at construction.
    parameters
        The parameters to differentiate in, in the order of the vectors. A mapping's are its values,
        and a forward function is then called as torch.func has it: ``source(parameters, data)``.
    data
        The argument of a forward function; required with one, refused otherwise.
    chunk_size
        The number of samples in one forward pass. The function then runs anew for every chunk of
        every product, for memory independent of the data. None: it runs once.
    weights
        One weight a sample or more, finite, >= 0 and not all zero; None for 1.
    fraction
        The fraction of the samples to use, drawn once.
    generator
        Draws these samples.
    mean
        Whether to divide by Σ_b samples_b.
    """

    def __init__(
        self,
        source: Any,
        parameters: Parameters,
        *,
        data: Any,
        chunk_size: int | None,
        weights: Tensor | None,
        fraction: float,
        generator: torch.Generator | None,
        mean: bool = True,
    ) -> None:
        self._mean = mean
        source, parameters = resolved(source, parameters)
        self._slots = Slots(parameters)
        first = self._slots.parameters[0]
        super().__init__(self._slots.size, self._slots.dtype, first.device)
        if not self._slots.trained:
            raise ValueError(
                f"0 of {len(self._slots.parameters)} parameters have requires_grad=True"
            )
        if weights is not None:
            weights = checked_weights(weights, first)
        self._forward: Forward | None = None
        self._kept: RecordedBatch | None = None
        self._reached: dict[Tensor, None] = {}  # a set that keeps the order

        if callable(source):
            self._set_data(data, chunk_size, weights, fraction, generator)
            self._forward = Forward(source, first.device)
            if chunk_size is None:
                self._kept = self._checked(
                    with_fallback_kernels(self._record_all, self._forward, self._record_again)
                )
            return
        if data is not None or chunk_size is not None or fraction != 1:
            raise ValueError(
                "data, chunk_size and fraction need a forward function: "
                f"{type(self).__name__}(forward, parameters, ..., data=x, chunk_size=m); "
                f"got {type(source).__name__}, which is already evaluated"
            )
        # preserved_buffers, here and below: checkpointed modules run again in a backward pass.
        with torch.inference_mode(False), preserved_buffers():
            self._kept = self._checked(self._record(source, weights, None))

    def _set_data(
        self,
        data: Any,
        chunk_size: int | None,
        weights: Tensor | None,
        fraction: float,
        generator: torch.Generator | None,
    ) -> None:
        """Check and keep the data of a forward function, or the fraction that is drawn of them."""
        if data is None:
            raise ValueError("a forward function needs data=x, the inputs to call it with")
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise ValueError(f"chunk_size must be a whole number of at least 1, got {chunk_size}")
        samples = length(data)
        if samples == 0:
            raise ValueError("the data are empty: the mean over no samples is undefined")
        if weights is not None and weights.shape[:1] != (samples,):
            raise ValueError(
                f"weights must have one entry a sample, {samples}, got {tuple(weights.shape)}"
            )
        if fraction != 1:
            index = subset(samples, fraction, generator)
            data, weights = take(data, index), None if weights is None else take(weights, index)
            samples = len(index)
        self._data, self._weights = data, weights
        self._chunk_size, self._samples = chunk_size or samples, samples

    @abstractmethod
    def _record(self, outcome: Any, weights: Tensor | None, samples: int | None) -> RecordedBatch:
        """Record the curvature of a forward pass.

        ``outcome`` is the value of the pass. ``samples`` counts the samples of data that it was
        called with; None if the caller ran it.
        """

    def _multiply(self, matrix: Tensor) -> Tensor:
        self._slots.check_unchanged()
        with torch.inference_mode(False), preserved_buffers():
            return with_fallback_kernels(
                lambda: self._product(matrix), self._forward, self._record_again
            )

    def _record_again(self) -> None:
        if self._kept is not None:
            self._kept = None  # frees the graph before the next one is recorded
            self._kept = self._record_all()

    def _product(self, matrix: Tensor) -> Tensor:
        if self._kept is not None:
            columns = [self._kept.product(column) for column in _columns(matrix)]
            total = columns[0].unsqueeze(1) if len(columns) == 1 else torch.stack(columns, dim=1)
            return total / self._kept.samples if self._mean else total
        total = torch.zeros_like(matrix)
        samples = 0.0
        assert self._forward is not None
        with self._forward.replayed():
            for batch in self._chunks():
                for index, column in enumerate(_columns(matrix)):
                    total[:, index] += batch.product(column)
                samples += batch.samples
                self._reached.update(dict.fromkeys(batch.reached))
                del batch  # frees its graph before the next chunk is recorded
        if not self._reached:
            raise self._slots.unreached()
        return total / samples if self._mean else total

    def _record_all(self) -> RecordedBatch:
        """Record all data as one chunk."""
        assert self._forward is not None
        with self._forward.replayed(), preserved_buffers():
            (batch,) = self._chunks()
        return batch

    @property
    def reached(self) -> tuple[Tensor, ...]:
        return tuple(self._reached)

    def __getstate__(self) -> dict[str, Any]:
        raise not_copyable(self)

    def _chunks(self) -> Iterator[RecordedBatch]:
        assert self._forward is not None
        for start in range(0, self._samples, self._chunk_size):
            index = slice(start, start + self._chunk_size)
            chunk = take(self._data, index)
            weights = None if self._weights is None else self._weights[index]
            batch = self._record(self._forward(chunk), weights, length(chunk))
            yield batch

    def _checked(self, batch: RecordedBatch) -> RecordedBatch:
        """Return a batch that is kept, unless it is empty or reaches no parameter."""
        self._reached.update(dict.fromkeys(batch.reached))
        if not batch.reached:
            raise self._slots.unreached()
        if not batch.samples > 0:
            raise ValueError("the batch is empty: the mean over no samples is undefined")
        return batch


def with_fallback_kernels(
    act: Callable[[], Result], forward: Forward | None, record_again: Callable[[], None]
) -> Result:
    """Return ``act()``, with kernels that have second derivatives if the default ones fail.

    Parameters
    ----------
    act
        The computation; called again after a failure.
    forward
        The forward function, switched to its fallback after a failure. None if there is none: the
        failure is raised then.
    record_again
        Called after the switch, to run the forward function anew.
    """
    try:
        return act()
    except NotTwiceDifferentiable:
        if forward is None or forward.fallback:
            raise
    forward.fallback = True
    record_again()
    return act()


def not_copyable(operator: LinearOperator) -> TypeError:
    """Build the error for copying or pickling an operator that holds a graph."""
    name = type(operator).__name__
    return TypeError(
        f"{name} holds a graph of the model that it was built from, and cannot be copied or saved. "
        f"Build a new one from the copied model; or keep its matrix, "
        f"LinearOperator.from_dense({name}(...).to_dense())"
    )


def _columns(matrix: Tensor) -> Iterator[Tensor]:
    for column in range(matrix.shape[1]):
        yield matrix[:, column].contiguous()

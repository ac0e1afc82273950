"""Curvature that is a mean over data: of one recorded graph, or of chunks recorded anew."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from natgrad.autodiff.data import length, subset, take
from natgrad.autodiff.differentiation import NotTwiceDifferentiable
from natgrad.autodiff.side_effects import Forward, preserved_buffers
from natgrad.autodiff.slots import Slots
from natgrad.curvature.operator import LinearOperator

Result = TypeVar("Result")


class Recorded(Protocol):
    """The curvature of one batch, summed over its samples, with its graph."""

    @property
    def samples(self) -> float:
        """What the mean divides by: a count, or a sum of weights."""

    @property
    def reached(self) -> list[Tensor]:
        """The parameters that it depends on."""

    def product(self, vector: Tensor) -> Tensor: ...


class BatchedOperator(LinearOperator):
    """(Σ_b K_b v) / Σ_b samples_b over batches b; undivided where ``mean`` is False.

    ``source`` is what a forward pass gives, whose graph is kept, or the forward function itself
    with its ``data``. With ``chunk_size`` the function runs anew for every chunk of every product,
    for memory independent of the data; without, once. Either way it leaves no trace: buffers and
    generators are as they were, and every product sees the same randomness, that of the
    construction. Subclasses say what one batch's curvature is (``_record``).
    """

    def __init__(
        self,
        source: Any,
        parameters: Iterable[Tensor],
        *,
        data: Any,
        chunk_size: int | None,
        weights: Tensor | None,
        fraction: float,
        generator: torch.Generator | None,
        mean: bool = True,
    ) -> None:
        self._mean = mean
        self._slots = Slots(parameters)
        first = self._slots.parameters[0]
        super().__init__(self._slots.size, first.dtype, first.device)
        if not self._slots.trained:
            raise ValueError(
                f"0 of {len(self._slots.parameters)} parameters have requires_grad=True"
            )
        if weights is not None:
            weights = _checked_weights(weights, first)
        self._forward: Forward | None = None
        self._kept: Recorded | None = None
        self._reached: dict[Tensor, None] = {}  # in order

        if not callable(source):
            if data is not None or chunk_size is not None or fraction != 1:
                raise ValueError(
                    "data, chunk_size and fraction need a forward function: "
                    f"{type(self).__name__}(forward, parameters, ..., data=x, chunk_size=m); "
                    f"got {type(source).__name__}, which is already evaluated"
                )
            # preserved_buffers, here and below: checkpointed modules run again in a backward pass.
            with torch.inference_mode(False), preserved_buffers():
                self._kept = self._checked(self._record(source, weights, None))
            return
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
        self._forward, self._data, self._weights = Forward(source, first.device), data, weights
        self._chunk_size, self._samples = chunk_size or samples, samples
        if chunk_size is None:
            self._kept = self._checked(
                twice_if_need_be(self._whole, self._forward, self._record_again)
            )

    @abstractmethod
    def _record(self, outcome: Any, weights: Tensor | None, samples: int | None) -> Recorded:
        """The curvature of what a forward pass returned for so many samples of data, if known."""

    def _multiply(self, matrix: Tensor) -> Tensor:
        self._slots.check_unchanged()
        with torch.inference_mode(False), preserved_buffers():
            return twice_if_need_be(
                lambda: self._product(matrix), self._forward, self._record_again
            )

    def _record_again(self) -> None:
        if self._kept is not None:
            self._kept = None  # or two graphs would be alive at once
            self._kept = self._whole()

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
                del batch  # or two chunks' graphs would be alive while the next is recorded
        if not self._reached:
            raise self._slots.unreached()
        return total / samples if self._mean else total

    def _whole(self) -> Recorded:
        """All data as the one chunk that is kept."""
        assert self._forward is not None
        with self._forward.replayed(), preserved_buffers():
            (batch,) = self._chunks()
        return batch

    @property
    def reached(self) -> tuple[Tensor, ...]:
        return tuple(self._reached)

    def __getstate__(self) -> dict[str, Any]:
        raise bound_to_a_graph(self)

    def _chunks(self) -> Iterator[Recorded]:
        assert self._forward is not None
        for start in range(0, self._samples, self._chunk_size):
            index = slice(start, start + self._chunk_size)
            chunk = take(self._data, index)
            weights = None if self._weights is None else self._weights[index]
            batch = self._record(self._forward(chunk), weights, length(chunk))
            yield batch

    def _checked(self, batch: Recorded) -> Recorded:
        self._reached.update(dict.fromkeys(batch.reached))
        if not batch.reached:
            raise self._slots.unreached()
        if not batch.samples > 0:
            raise ValueError("the batch is empty: the mean over no samples is undefined")
        return batch


def twice_if_need_be(
    act: Callable[[], Result], forward: Forward | None, record_again: Callable[[], None]
) -> Result:
    """``act()``; where it meets kernels without second derivatives, once more with others, behind a
    new record of ``forward``."""
    try:
        return act()
    except NotTwiceDifferentiable:
        if forward is None or forward.fallback:
            raise
    forward.fallback = True
    record_again()
    return act()


def bound_to_a_graph(operator: LinearOperator) -> TypeError:
    """The error for a copy or a pickle of an operator that holds a graph."""
    name = type(operator).__name__
    return TypeError(
        f"{name} holds a graph of the model that it was built from, and cannot be copied or saved. "
        f"Build a new one from the copied model; or keep its matrix, "
        f"LinearOperator.from_dense({name}(...).to_dense())"
    )


def _columns(matrix: Tensor) -> Iterator[Tensor]:
    for column in range(matrix.shape[1]):
        yield matrix[:, column].contiguous()


def _checked_weights(weights: Tensor, like: Tensor) -> Tensor:
    if not isinstance(weights, Tensor) or weights.is_complex() or not weights.numel():
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights must be a real tensor with one entry a sample, got {got}")
    weights = weights.detach().to(like)
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()) or not bool(weights.any()):
        raise ValueError(
            "weights must be finite, >= 0 and not all zero, got values from "
            f"{float(weights.min()):g} to {float(weights.max()):g}"
        )
    return weights

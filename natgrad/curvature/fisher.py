"""The Fisher information matrix of a model that returns a distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributions import Distribution

from natgrad.curvature.jacobian import Jacobian
from natgrad.curvature.metrics import output_metric
from natgrad.curvature.operator import LinearOperator
from natgrad.flat import check_alike

Forward = Callable[[Any], Distribution]


class Fisher(LinearOperator):
    """F = (1/N) Σ_i E_{a ~ p_i}[∇log p_i(a) ∇log p_i(a)ᵀ], with p_i the i-th of N distributions.

    Exact and positive semidefinite by construction, F = mean of Jᵀ M J: one Jacobian product, the
    closed-form metric M of the family in output space (:mod:`natgrad.curvature.metrics`), one
    transposed product. It equals the Hessian of mean KL(p_old ‖ p_θ) at θ_old; no KL is formed.
    N is the number of elements in the batch shape.

    Two forms:

    - ``Fisher(distribution, parameters)`` keeps the distribution's graph. Cost: set-up about 1
      gradient, a product about 1 gradient; memory of one gradient and its recorded backward pass.
    - ``Fisher(forward, parameters, data=x, chunk_size=m)`` calls ``forward(x[i:i+m])`` anew for
      every chunk of every product. Cost: about 2.5 gradients a product, more where chunks are so
      small that the overhead of launching them shows; memory independent of N.
      All columns of ``F @ V`` share one pass. The state of the random generator is that of the
      construction in every product, so that dropout masks do not change between products.
      ``data`` is a tensor, or a mapping or sequence of tensors, cut along dimension 0. Without
      ``chunk_size`` the forward pass runs once and its graph is kept, as in the first form.

    The parameters must stay as they are while F is in use (autograd refuses otherwise). Parameters
    that are frozen or unused have zero rows.

    Raises ``TypeError`` where the family has no metric, ``ValueError`` where the batch is empty or
    the distribution depends on none of the parameters.

    Reference: Martens, "New insights and perspectives on the natural gradient method", 2020,
    section 6 (Fisher as generalised Gauss-Newton); the shared-graph product is our own.

    >>> weight = torch.zeros(2, 3, requires_grad=True)
    >>> fisher = Fisher(torch.distributions.Categorical(logits=torch.ones(5, 2) @ weight), [weight])
    >>> (fisher @ torch.ones(6)).abs().max() < 1e-6      # equal logits: a direction without effect
    tensor(True)
    """

    @overload
    def __init__(self, source: Distribution, parameters: Iterable[Tensor]) -> None: ...
    @overload
    def __init__(
        self,
        source: Forward,
        parameters: Iterable[Tensor],
        *,
        data: Any,
        chunk_size: int | None = None,
    ) -> None: ...
    def __init__(
        self,
        source: Distribution | Forward,
        parameters: Iterable[Tensor],
        *,
        data: Any = None,
        chunk_size: int | None = None,
    ) -> None:
        self._parameters = list(parameters)
        check_alike(self._parameters)
        first = self._parameters[0]
        size = sum(parameter.numel() for parameter in self._parameters)
        super().__init__(size, first.dtype, first.device)

        self._kept: _BatchFisher | None = None
        if isinstance(source, Distribution):
            if data is not None or chunk_size is not None:
                raise ValueError(
                    "data and chunk_size need a forward function: Fisher(forward, parameters, "
                    "data=x, chunk_size=m); a distribution is already evaluated"
                )
            self._kept = _BatchFisher(source, self._parameters)
            return
        if data is None:
            raise ValueError("a forward function needs data=x, the inputs to call it with")
        if chunk_size is None:
            with torch.enable_grad():
                self._kept = _BatchFisher(source(data), self._parameters)
            return
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        if _length(data) == 0:
            raise ValueError("the data are empty: the mean over no samples is undefined")
        self._forward, self._data, self._chunk_size = source, data, chunk_size
        self._random_state = torch.get_rng_state()
        self._device_random_state = (
            torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        )

    def _multiply(self, matrix: Tensor) -> Tensor:
        total = torch.zeros_like(matrix)
        samples = 0
        for batch in self._batches():
            for column in range(matrix.shape[1]):
                total[:, column] += batch.product(matrix[:, column].contiguous())
            samples += batch.samples
            del batch  # or two chunks' graphs would be alive while the next one is recorded
        return total / samples

    def _batches(self) -> Iterator[_BatchFisher]:
        if self._kept is not None:
            yield self._kept
            return
        with self._frozen_randomness():
            for start in range(0, _length(self._data), self._chunk_size):
                chunk = _chunk(self._data, start, start + self._chunk_size)
                with torch.enable_grad():
                    distribution = self._forward(chunk)
                yield _BatchFisher(distribution, self._parameters)

    @contextmanager
    def _frozen_randomness(self) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._random_state)
            if self._device_random_state is not None:
                torch.cuda.set_rng_state(self._device_random_state, self.device)
            yield


class _BatchFisher:
    """Jᵀ M J summed over one batch, from its kept graph."""

    def __init__(self, distribution: Distribution, parameters: Sequence[Tensor]) -> None:
        if not isinstance(distribution, Distribution):
            raise TypeError(
                "the forward function must return a torch.distributions.Distribution, got "
                f"{type(distribution).__name__}; wrap logits as Categorical(logits=...)"
            )
        self.samples = distribution.batch_shape.numel()
        if self.samples == 0:
            raise ValueError("the batch is empty: the mean over no samples is undefined")
        self._metric = output_metric(distribution)
        self._jacobian = Jacobian(self._metric.outputs, parameters)

    def product(self, vector: Tensor) -> Tensor:
        tangents = self._jacobian.forward(vector)
        return self._jacobian.transpose(self._metric.multiply(tangents))


def _length(data: Any) -> int:
    if isinstance(data, Tensor):
        return data.shape[0]
    lengths = {_length(part) for part in (data.values() if isinstance(data, Mapping) else data)}
    if len(lengths) != 1:
        raise ValueError(f"all tensors of the data must have one length, got {sorted(lengths)}")
    return lengths.pop()


def _chunk(data: Any, start: int, stop: int) -> Any:
    if isinstance(data, Tensor):
        return data[start:stop]
    if isinstance(data, Mapping):
        return {key: _chunk(value, start, stop) for key, value in data.items()}
    return tuple(_chunk(value, start, stop) for value in data)

"""The batches behind the gradients in ``.grad``, seen by a hook on the model.

Curvature needs a model's inputs; ``step()`` is given none. So a forward hook watches the model: a
call made in training mode, with gradients enabled, counts from the moment that a backward pass
comes through its outputs. Several forward passes before one step (gradient accumulation) all
count; validation passes, and those whose loss or gradient was thrown away, do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_flatten, tree_unflatten

from natgrad.autodiff.data import subset, take
from natgrad.autodiff.side_effects import Held, MovingBuffers, RandomState, lent_buffers
from natgrad.curvature import LinearOperator
from natgrad.flat import real_dtype


@dataclass
class Batch:
    """One call of the model. ``random`` is the state of the generators that it drew from,
    ``buffers`` those that it wrote to, as they were before, ``version`` counts the changes of the
    parameters until then, ``output_gradient`` is ∂loss/∂output and ``output`` the output if that is
    a tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: RandomState
    version: int
    buffers: Held
    output_gradient: Tensor | None = None
    output: Tensor | None = None
    output_version: int = 0

    def kept_output(self, dtype: torch.dtype) -> Tensor | None:
        """The model's output, detached; None if it was no tensor, is in another precision or has
        been written to since."""
        output = self.output
        if output is None or output.dtype is not dtype or output._version != self.output_version:
            return None
        return output

    def split(
        self, fraction: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], Callable[[list[Tensor]], tuple[Any, Any]]]:
        """The tensors to cut along dimension 0, all of the first one's length, and the function
        that makes the model's arguments of such pieces; the other arguments (masks, flags) are
        whole in every chunk. A ``fraction`` of the samples is drawn by ``generator``."""
        leaves, structure = tree_flatten((self.args, self.kwargs))
        lengths = [leaf.shape[0] if _has_length(leaf) else None for leaf in leaves]
        first = next((length for length in lengths if length is not None), None)
        cut = [i for i, length in enumerate(lengths) if first is not None and length == first]
        # Inputs that require gradients do so again: some models make their graph depend on it.
        data = [leaves[i].detach().requires_grad_(leaves[i].requires_grad) for i in cut]
        data = data or [torch.zeros(1)]
        if fraction != 1:
            data = take(data, subset(len(data[0]), fraction, generator))

        def join(pieces: list[Tensor]) -> tuple[Any, Any]:
            whole = list(leaves)
            for index, piece in zip(cut, pieces, strict=False):
                whole[index] = piece
            args, kwargs = tree_unflatten(whole, structure)
            return args, kwargs

        return data, join


class ObservedModel:
    """``model`` and the batches that its gradients come from; ``clear()`` forgets them.

    ``called`` is set by any call of the model; with ``keeps_outputs``, and until the model is
    ``examined``, a batch holds the model's output.

    Copies and pickles of the model carry a hook that does nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        self.model = model
        self.batches: list[Batch] = []
        self.keeps_outputs = self.examined = False
        self._watch()

    def _watch(self) -> None:
        self._paused = self._cleared = self.called = False
        self._parameters = list(self.model.parameters())
        self._moving = MovingBuffers(self.model)
        for handle in (
            self.model.register_forward_pre_hook(_Hook(self.begins)),
            self.model.register_forward_hook(_Hook(self.saw), with_kwargs=True),
        ):
            weakref.finalize(self, handle.remove)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "keeps_outputs": self.keeps_outputs,
            "examined": self.examined,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.model, self.batches = state["model"], []
        self.keeps_outputs, self.examined = state["keeps_outputs"], state["examined"]
        self._watch()

    def clear(self) -> None:
        """Forget the batches; not while paused, when a search calls the closure again."""
        if not self._paused:
            self.batches, self._cleared = [], True

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Inside, new batches take the place of the old ones. Where none came, and no gradient was
        thrown away, the old ones are still those behind it: ``loss.backward()`` came before."""
        before, self.batches, self._cleared = self.batches, [], False
        try:
            yield
        finally:
            if not self.batches and not self._cleared:
                self.batches = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, calls of the model do not count."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _watches(self) -> bool:
        if self._paused or not torch.is_grad_enabled() or not self.model.training:
            return False
        # In torch.func other tensors stand in for the parameters, and their gradients are no .grad.
        return isinstance(next(self.model.parameters(), None), nn.Parameter)

    def begins(self, args: tuple[Any, ...]) -> None:
        self.called = True  # only written: torch.compile would guard a value that is read
        if not self._watches():
            return
        # A model in a checkpoint is called again by the backward pass that its batch comes from.
        in_backward = torch._C._current_graph_task_id() != -1
        unused = all(parameter.grad is None for parameter in self._parameters)
        if self.batches and unused and not in_backward:
            self.batches = []  # the zero_grad() of the model, or of another optimizer
        self._random = RandomState(self._parameters[0].device)
        self._held = self._moving.copied()

    def saw(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._watches():
            return
        version = sum(parameter._version for parameter in self._parameters)
        batch = Batch(args, kwargs, self._random, version, self._moving.moved(self._held))
        alone = isinstance(output, Tensor)
        if alone and (self.keeps_outputs or not self.examined):
            batch.output, batch.output_version = output.detach(), output._version

        # Names neither the output nor a tensor of it: a cycle would keep the graph until gc.
        def count(gradient: Tensor) -> None:
            if all(known is not batch for known in self.batches):
                batch.output_gradient = None
                # Another optimizer's step leaves the gradients before it behind.
                self.batches = [known for known in self.batches if known.version == version]
                self.batches.append(batch)
            if alone:
                known = batch.output_gradient
                batch.output_gradient = gradient if known is None else known + gradient

        tensors = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if not tensors:  # an object of an unknown type, whose tensors cannot be found
            self.batches.append(batch)
        for tensor in tensors:
            tensor.register_hook(count)  # type: ignore[no-untyped-call]

    def call(self, pieces: list[Tensor], join: Callable[..., Any]) -> Any:
        """The model's output for the data of a batch, or a chunk of them, in full precision."""
        parameter = next(self.model.parameters())
        args, kwargs = join([_unhalved(piece, real_dtype(parameter)) for piece in pieces])
        # The module inside torch.compile's wrapper: uncompiled, it runs without warnings here.
        model = getattr(self.model, "_orig_mod", self.model)
        with self.paused(), torch.autocast(parameter.device.type, enabled=False):
            return model(*args, **kwargs)

    def required_batches(self) -> list[Batch]:
        """The batches. Raises ``RuntimeError`` where there are none."""
        if not self.batches:
            raise RuntimeError(
                f"no batch of {type(self.model).__name__} is known: between the last step and this "
                "one, no backward pass came through its outputs. Call the model itself, not its "
                "parts, in training mode (model.train()), and loss.backward() after it; or pass "
                "curvature=... in place of the model"
            )
        return self.batches

    @contextmanager
    def replayed(
        self, batch: Batch, fraction: float = 1.0, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Callable[[list[Tensor]], Any], list[Tensor]]]:
        """(forward, data) of a batch; inside, random generators are as at the batch's call."""
        data, join = batch.split(fraction, generator)
        with batch.random.replayed(), lent_buffers(batch.buffers):
            yield partial(self.call, join=join), data

    def curvature(
        self,
        make: Callable[[Callable[[Any], Any], Any], LinearOperator],
        fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LinearOperator:
        """The mean over the batches, by their lengths, of ``make(forward, data)``."""
        operators, lengths = [], []
        for batch in self.required_batches():
            with self.replayed(batch, fraction, generator) as (forward, data):
                operators.append(make(forward, data))
            lengths.append(len(data[0]))
        total = operators[0]
        if len(operators) > 1:
            total = operators[0] * (lengths[0] / sum(lengths))
            for operator, length in zip(operators[1:], lengths[1:], strict=True):
                total = total + operator * (length / sum(lengths))
        return total


class _Hook:
    """A forward hook that keeps nothing alive, and that no copy of the model shares."""

    def __init__(self, method: Callable[..., None]) -> None:
        self._method: Callable[[], Any] = weakref.WeakMethod(method)

    def __call__(self, module: nn.Module, *call: Any) -> None:
        method = self._method()
        if method is not None and method.__self__.model is module:
            method(*call)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _idle()

    def __reduce__(self) -> tuple[Callable[[], _Hook], tuple[()]]:
        return _idle, ()


def _idle() -> _Hook:
    hook = _Hook.__new__(_Hook)
    hook._method = _nothing
    return hook


def _nothing() -> None:
    return None


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in nested containers and distributions."""
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Distribution):
            yield from _tensors(vars(leaf))


def _has_length(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _unhalved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to(dtype) if half else tensor

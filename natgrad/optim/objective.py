"""A closure as a function of the parameters, to be called again and again in one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import TorchFunctionMode

from natgrad import flat
from natgrad.autodiff.differentiation import eager
from natgrad.autodiff.side_effects import RandomState, preserved_buffers

Closure = Callable[[], Any]
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class Objective:
    """f(θ) by a closure, ``sign`` times what it returns.

    The first call is the user's own: it draws random numbers and updates buffers as any forward
    pass does. Further ones see the same randomness (dropout masks) and leave no trace, so that
    their values can be compared. ``returned`` is what the first gave, ``evaluations`` counts all.
    ``uncompiled`` is for those whose graph of the first call is differentiated again, which that of
    torch.compile's code cannot be.
    """

    def __init__(
        self,
        closure: Closure,
        device: torch.device,
        sign: float = 1.0,
        *,
        loss_of: Callable[[Any], Tensor] | None = None,
        uncompiled: bool = False,
    ) -> None:
        self._closure, self._loss_of = closure, loss_of or as_loss
        self._uncompiled = uncompiled
        self._state = RandomState(device)
        self._sign = sign
        self._forward_suffices = True
        self._recorded: RecordedBackward | None = None
        self.returned: Any = None
        self.evaluations = 0
        self.measures = True  # other θ than the first

    def first(self, *, keep_graph: bool = False) -> Any:
        """What the closure returns at the parameters as they are, unchanged. ``keep_graph`` keeps
        the graph of its loss for :meth:`root`."""
        self.evaluations += 1
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if self._uncompiled:
                stack.enter_context(eager())
            if keep_graph:
                self._recorded = stack.enter_context(RecordedBackward())
            self.returned = self._closure()
        return self.returned

    def root(self) -> Tensor:
        """f at the first call, a scalar with its graph. Raises ``ValueError`` where the closure
        called no ``backward()``."""
        assert self._recorded is not None
        with torch.enable_grad():
            return self._sign * self._recorded.scalar()

    def again(self) -> Any:
        """What the closure returns at the parameters as they are now."""
        self.evaluations += 1
        with torch.enable_grad(), self._state.replayed(), preserved_buffers():
            return self._closure()

    def at(self, parameters: Sequence[Tensor], theta: Tensor, start: Tensor) -> Any:
        """What the closure returns at θ, at the cost of a forward pass: its ``backward()`` calls
        are skipped. A closure that cannot do without their gradients is called whole from then on.
        The parameters are ``start`` before and after.
        """
        with moved(parameters, theta, start):
            if self._forward_suffices:
                try:
                    with _WithoutBackward():
                        return self.again()
                except LinAlgError:
                    raise
                except Exception:
                    self._forward_suffices = False
            return self.again()

    def value(self, parameters: Sequence[Tensor], theta: Tensor, start: Tensor) -> Tensor:
        """f(θ), 0-d float64, as cheaply as :meth:`at`. Infinite where a matrix could not be
        factored: f is not defined there, and a search goes on to shorter steps."""
        try:
            return self._sign * self._loss_of(self.at(parameters, theta, start))
        except LinAlgError:
            return torch.tensor(math.inf, dtype=torch.float64)

    def value_and_gradient(
        self, parameters: Sequence[Tensor], theta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """f(θ) and its gradient (n,), for parameters whose ``.grad`` the closure fills. Infinite as
        :meth:`value` is, and then without a gradient."""
        flat.assign(parameters, theta)
        try:
            loss = self._sign * self._loss_of(self.again())
        except LinAlgError:
            return torch.tensor(math.inf, dtype=torch.float64), torch.zeros_like(theta)
        return loss, self._sign * gathered(parameters)


def as_loss(value: Any) -> Tensor:
    """A closure's loss as a 0-d float64 tensor. Raises ``TypeError`` where it is no scalar."""
    if isinstance(value, (int, float)):
        return torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"the closure must return the scalar loss, got {got}: zero_grad(), compute the loss, "
            "loss.backward(), return loss"
        )
    return value.detach().reshape(()).double()


def gathered(parameters: Sequence[Tensor]) -> Tensor:
    """The gradient (n,) from ``.grad``, zeros where that is None."""
    return flat.flatten(
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    )


@contextmanager
def moved(parameters: Sequence[Tensor], theta: Tensor, start: Tensor) -> Iterator[None]:
    """Inside, the parameters are θ; then ``start`` again, bit for bit. Autograd counts no change:
    operators which were built at ``start`` stay usable."""
    with ExitStack() as stack:
        for parameter in parameters:
            stack.enter_context(_unsafe_preserve_version_counter(parameter))
        try:
            flat.assign(parameters, theta)
            yield
        finally:
            flat.assign(parameters, start)


class _WithoutBackward(TorchFunctionMode):
    """Inside, ``tensor.backward()`` does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            return None
        return func(*args, **(kwargs or {}))


class RecordedBackward(TorchFunctionMode):
    """Inside, ``tensor.backward()`` keeps its graph; ``roots`` collects what it started from.

    A standard closure frees the graph of its loss before it returns; exact curvature of that very
    loss needs it. ``scalar()`` is Σ over the calls of (tensor · weight), whose gradient was
    accumulated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward:
            root, *rest = args
            named = dict(
                zip(("gradient", "retain_graph", "create_graph", "inputs"), rest, strict=False)
            )
            named.update(kwargs)
            named["retain_graph"], named["create_graph"] = True, False
            self.roots.append((root, named.get("gradient")))
            return func(root, **named)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def scalar(self) -> Tensor:
        """The recorded objective with its graph. Raises ``ValueError`` where there was none."""
        if not self.roots:
            raise ValueError(
                "the closure called no loss.backward(): exact curvature is taken from the graph "
                "that the call starts from; torch.autograd.backward and .grad are not seen"
            )
        parts = [
            root.sum() if weight is None else (root * weight).sum() for root, weight in self.roots
        ]
        return torch.stack([part.double() for part in parts]).sum()


@contextmanager
def kept_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Afterwards ``.grad`` is what it was: the same tensors with the same values."""
    before = [parameter.grad for parameter in parameters]
    values = [None if grad is None else grad.clone() for grad in before]
    try:
        yield
    finally:
        for parameter, grad, value in zip(parameters, before, values, strict=True):
            if grad is not None and value is not None:
                grad.copy_(value)
            parameter.grad = grad

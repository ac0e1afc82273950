"""A closure as a function of the parameters, and the start of a step that its first call gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import TorchFunctionMode

from natgrad import flat
from natgrad.autodiff.differentiation import eager, twice_differentiable, without_hooks
from natgrad.autodiff.graph import Graph
from natgrad.autodiff.side_effects import RandomState, preserved_buffers
from natgrad.curvature import LinearOperator
from natgrad.optim.observed_model import ObservedModel
from natgrad.optim.recorded_backward import RecordedBackward

Closure = Callable[[], Any]
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class ClosureForm(Enum):
    """What an optimizer reads from the first call of a closure."""

    STANDARD = "a loss, and gradients in .grad"
    RESIDUALS = "a loss, or residuals r as a tensor with a dimension, whose loss is ½‖r‖²"
    GRAPH = "a loss and gradients; the graph of the loss is kept for Objective.root"


class Objective:
    """f(θ) by a closure, ``sign`` times the loss that it returns.

    The first call is the user's own: it draws random numbers and updates buffers as any forward
    pass does. Further calls see the same randomness (dropout masks) and leave no trace, so that
    their values can be compared. ``returned`` is the value of the first call, ``evaluations``
    counts all calls, ``measures`` says whether the closure can measure another θ than the first,
    ``computes`` whether its first call wrote to ``.grad``.

    The forms RESIDUALS and GRAPH differentiate the graph of the first call again: torch.compile,
    and for GRAPH fused kernels of attention and RNNs, can be differentiated once, and are off.
    """

    def __init__(
        self,
        closure: Closure,
        device: torch.device,
        sign: float,
        form: ClosureForm,
    ) -> None:
        self._closure, self._sign, self._form = closure, sign, form
        self._recorded = RecordedBackward() if form is ClosureForm.GRAPH else None
        self._state = RandomState(device)
        self._forward_suffices = True
        self.returned: Any = None
        self.evaluations = 0
        self.measures = self.computes = True

    def first(self, observed: ObservedModel | None) -> Any:
        """Call the closure at the parameters as they are; the step starts from its gradients.

        Returns the value that ``step`` returns: the closure's, for residuals ½‖r‖².
        """
        self.evaluations += 1
        with ExitStack() as stack:
            if observed is not None:
                observed.called = False
                stack.enter_context(observed.renewed())
            stack.enter_context(torch.enable_grad())
            if self._form is not ClosureForm.STANDARD:
                stack.enter_context(eager())
            if self._recorded is not None:
                stack.enter_context(twice_differentiable())
                stack.enter_context(self._recorded)
            self.returned = self._call()
        if observed is not None:
            # Without a call of the model, a scalar only repeats the loss of an earlier pass.
            self.measures = observed.called or self.residuals is not None
        if self.residuals is not None:
            return self.loss_of(self.residuals).to(self.residuals.dtype)
        if self._recorded is not None and isinstance(self.returned, Tensor):
            return self.returned.detach()  # losses that the caller collects would hold graphs
        return self.returned

    @property
    def residuals(self) -> Tensor | None:
        """The residuals, with their graph, where the first call returned some."""
        return self.returned if self._holds_residuals(self.returned) else None

    def root(self) -> Tensor:
        """f at the first call, a scalar with its graph. Raises ``ValueError`` where the closure
        called no ``backward()``."""
        assert self._recorded is not None
        with torch.enable_grad():
            return self._sign * self._recorded.scalar()

    def again(self) -> Any:
        """Return the closure's value at the parameters as they are now."""
        self.evaluations += 1
        # The kernels of the first call; uncompiled, since compiled code runs without the hooks that
        # put buffers back.
        kernels = nullcontext() if self._recorded is None else twice_differentiable()
        with torch.enable_grad(), self._state.replayed(), eager(), kernels, preserved_buffers():
            return self._call()

    def at(self, parameters: Sequence[Tensor], theta: Tensor, start: Tensor) -> Any:
        """Return the closure's value at θ, at the cost of a forward pass: its ``backward()`` calls
        are skipped. A closure that fails without their gradients is called whole from then on.
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
            return self._sign * self.loss_of(self.at(parameters, theta, start))
        except LinAlgError:
            return torch.tensor(math.inf, dtype=torch.float64)

    def value_and_gradient(
        self, parameters: Sequence[Tensor], theta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """f(θ) and its gradient (n,), for parameters whose ``.grad`` the closure fills. Infinite as
        :meth:`value` is, and then without a gradient."""
        flat.assign(parameters, theta)
        try:
            loss = self._sign * self.loss_of(self.again())
        except LinAlgError:
            return torch.tensor(math.inf, dtype=torch.float64), torch.zeros_like(theta)
        return loss, self._sign * _gathered(parameters)

    def loss_of(self, returned: Any) -> Tensor:
        """The loss of a value of the closure, 0-d float64."""
        if self._holds_residuals(returned):
            residuals: Tensor = returned.detach().double()
            return residuals.square().sum() / 2
        return as_loss(returned)

    def _call(self) -> Any:
        returned = self._closure()
        if self._holds_residuals(returned) and returned.is_complex():
            return torch.view_as_real(returned)
        return returned

    def _holds_residuals(self, returned: Any) -> bool:
        takes = self._form is ClosureForm.RESIDUALS
        return takes and isinstance(returned, Tensor) and returned.ndim > 0


@dataclass(frozen=True)
class Start:
    """Where a step begins: ``theta`` (n,) of the parameters that have a gradient, the ``gradient``
    (n,) of the objective and its value, ``loss``, 0-d float64; ``objective`` calls the closure
    again. The last two are None without a closure that measures."""

    parameters: list[Tensor]
    theta: Tensor
    gradient: Tensor
    loss: Tensor | None
    objective: Objective | None

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float]:
        """(loss, 0) at θ, as :func:`natgrad.backtracking` asks for it."""
        assert self.objective is not None
        return self.objective.value(self.parameters, theta, self.theta), 0.0

    def require_reached(self, curvature: LinearOperator, observed: ObservedModel | None) -> None:
        """Raise ``ValueError`` where a gradient is not zero in a parameter that the curvature does
        not know: its row is zero, and the step there would be the gradient over the damping."""
        if curvature.reached is None:
            return
        known = set(curvature.reached)
        names: dict[Tensor, str] = {}
        if observed is not None:
            names = {parameter: name for name, parameter in observed.model.named_parameters()}
        missing = [
            names.get(p, f"a parameter of shape {tuple(p.shape)} outside the model")
            for p in self.parameters
            if p not in known and p.grad is not None and bool(p.grad.any())
        ]
        if missing:
            raise ValueError(
                f"the gradient reaches {', '.join(missing)}, but the curvature does not: the "
                "outputs that it is taken of do not depend on them (a weight in the loss itself, "
                "an output that the likelihood leaves out, a layer in a reentrant checkpoint). "
                "Give them to another optimizer, or give curvature=... that knows them"
            )


def start_of(objective: Objective | None, parameters: list[Tensor], sign: float) -> Start:
    """The start of a step: its gradient is Jᵀr where the closure returned residuals, else
    ``sign`` times ``.grad``. A closure that returned nothing has no loss to search by."""
    if objective is None or not objective.measures or objective.returned is None:
        objective = None
    elif objective.residuals is not None:
        return _start_at_residuals(objective, objective.residuals, parameters)
    loss = None if objective is None else sign * objective.loss_of(objective.returned)
    active = [p for p in parameters if p.requires_grad and p.grad is not None]
    if not active:
        nothing = torch.zeros(0)
        return Start([], nothing, nothing, loss, objective)
    return Start(active, flat.flatten(active), sign * _gathered(active), loss, objective)


def _start_at_residuals(objective: Objective, residuals: Tensor, parameters: list[Tensor]) -> Start:
    if not residuals.numel():
        raise ValueError(
            f"no residuals: the closure returned a tensor of shape {tuple(residuals.shape)}"
        )
    if not residuals.requires_grad:
        raise ValueError(
            "the residuals that the closure returned carry no graph; compute them from the "
            "parameters, with gradients enabled"
        )
    loss = objective.loss_of(residuals)
    active = [p for p in parameters if p.requires_grad]
    with torch.enable_grad():
        # Not ½‖r‖² with its float32 sum: the same gradient from the residuals themselves.
        scalar = residuals.reshape(-1) @ residuals.detach().reshape(-1)
    # Jᵀr as it is: a hook that clips gradients would part it from J.
    with without_hooks(Graph([residuals]).hooks, active):
        gradient = flat.gradient(scalar, active, retain_graph=True)
    return Start(active, flat.flatten(active), gradient, loss, objective)


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


def _gathered(parameters: Sequence[Tensor]) -> Tensor:
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


@contextmanager
def kept_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Afterwards ``.grad`` is the same tensors with the same values as before."""
    before = [parameter.grad for parameter in parameters]
    values = [None if grad is None else grad.clone() for grad in before]
    try:
        yield
    finally:
        for parameter, grad, value in zip(parameters, before, values, strict=True):
            if grad is not None and value is not None:
                grad.copy_(value)
            parameter.grad = grad


class _WithoutBackward(TorchFunctionMode):
    """Inside, ``tensor.backward()`` does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            return None
        return func(*args, **(kwargs or {}))

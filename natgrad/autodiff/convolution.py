"""Convolutions whose double backward pass computes only the derivatives that are needed.

torch's own double backward pass always computes three gradients, six convolutions a layer and more,
where the Jacobian product J v needs two: x ∗ dW + dx ∗ W. On a ResNet that is half of a product.

A convolution y = x ∗ W has the gradients gₓ = ∂/∂x ⟨g, x ∗ W⟩, linear in g and W, and g_W, linear
in g and x. The engine skips nodes that it does not need, but not parts of a node. So the dependence
of gₓ on g is one node (:class:`_GradientInOutput`) and that on W another one, of value zero
(:class:`_GradientInOperand`); their sum is gₓ with both derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from natgrad.autodiff.hooks import WithoutTensorHooks

_DIMENSIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


class LeanConvolutions(WithoutTensorHooks):
    """A context in which F.conv1d, conv2d and conv3d have a lean double backward pass.

    Values and first derivatives are torch's. Tensors get no hooks inside either: one mode for both
    costs half of two nested ones.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        dimensions = _DIMENSIONS.get(func)
        if dimensions is None:
            return super().__torch_function__(func, types, args, kwargs)
        keywords = dict(kwargs or {})
        if not torch.is_grad_enabled():
            return func(*args, **keywords)
        named = dict(zip(_ARGUMENTS, args, strict=False)) | keywords
        x, weight = named["input"], named["weight"]
        padding = named.get("padding", 0)
        if isinstance(padding, str) or x.ndim != dimensions + 2 or x.dtype != weight.dtype:
            return func(*args, **keywords)
        geometry = Geometry(
            _tuple(named.get("stride", 1), dimensions),
            _tuple(padding, dimensions),
            _tuple(named.get("dilation", 1), dimensions),
            named.get("groups", 1),
        )
        return _apply(_Convolution, x, weight, named.get("bias"), geometry)


_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Geometry:
    """The settings of a convolution, one entry a spatial dimension, and torch's kernels for it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def _settings(self) -> tuple[Any, ...]:
        """The arguments that ATen's convolution and its backward pass share; not transposed."""
        no_output_padding = [0] * len(self.stride)
        return self.stride, self.padding, self.dilation, False, no_output_padding, self.groups

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x ∗ W, plus the bias."""
        output: Tensor = torch.ops.aten.convolution(x, weight, bias, *self._settings)
        return output

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, *, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """Compute gₓ and g_W for the output gradient g.

        ``wanted`` selects (gₓ, g_W). If gₓ alone is wanted, only the shape of ``x`` is read; if
        g_W alone, only that of ``weight``.
        """
        gx, gw, _ = torch.ops.aten.convolution_backward(
            g, x, weight, None, *self._settings, [*wanted, False]
        )
        return gx, gw


class _Convolution(Function):
    """x ∗ W + b; a backward pass that is recorded is split into nodes by :func:`_split`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return geometry.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight = ctx.saved_tensors
        in_x, in_weight, in_bias, _ = ctx.needs_input_grad
        g_bias = g.sum(dim=[0, *range(2, g.ndim)]) if in_bias else None
        gx: Tensor | None
        gw: Tensor | None
        if torch.is_grad_enabled():
            gx = _split(g, x, weight, ctx.geometry, of_input=True) if in_x else None
            gw = _split(g, x, weight, ctx.geometry, of_input=False) if in_weight else None
        else:
            gx, gw = ctx.geometry.backward(g, x, weight, wanted=(in_x, in_weight))
        return gx, gw, g_bias, None


@dataclass(frozen=True)
class _Operands:
    """The operands of a gradient, wrapped so that autograd draws no edges to them.

    ``of_input`` tells whether the gradient is gₓ or g_W. In a recorded backward pass the graphs of
    the operands count again: third and higher derivatives follow from torch's own formulas.
    """

    g: Tensor
    x: Tensor
    weight: Tensor
    geometry: Geometry
    of_input: bool


def _split(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *, of_input: bool) -> Tensor:
    """Compute gₓ (``of_input``) or g_W, with its two derivatives in two nodes."""
    operands = _Operands(g, x, weight, geometry, of_input)
    value = _apply(_GradientInOutput, g, operands)
    variable = weight if of_input else x
    if not variable.requires_grad:
        return value
    return _apply(_AddZero, value, _apply(_GradientInOperand, variable, operands))


class _GradientInOutput(Function):
    """gₓ or g_W as a function of the output gradient g alone."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, operands: _Operands) -> Tensor:
        ctx.operands = operands
        wanted = operands.of_input, not operands.of_input
        gx, gw = operands.geometry.backward(g, operands.x, operands.weight, wanted=wanted)
        return gx if operands.of_input else gw

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = gradients
        operands: _Operands = ctx.operands
        if operands.of_input:
            return operands.geometry.forward(v, operands.weight), None
        return operands.geometry.forward(operands.x, v), None


class _GradientInOperand(Function):
    """A zero whose derivative is that of gₓ in W, or of g_W in x."""

    @staticmethod
    def forward(ctx: Any, variable: Tensor, operands: _Operands) -> Tensor:
        ctx.operands = operands
        like = operands.x if operands.of_input else operands.weight
        return like.new_zeros(()).expand(like.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = gradients
        operands: _Operands = ctx.operands
        geometry = operands.geometry
        if operands.of_input:
            _, gw = geometry.backward(operands.g, v, operands.weight, wanted=(False, True))
            return gw, None
        gx, _ = geometry.backward(operands.g, operands.x, v, wanted=(True, False))
        return gx, None


class _AddZero(Function):
    """value + zero, without computing the addition."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, zero: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (v,) = gradients
        return v, v


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    output: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return output


def _tuple(value: int | Iterable[int], dimensions: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dimensions
    given = tuple(value)
    return given * dimensions if len(given) == 1 else given


# Graph trusts these: their backward passes are linear and differentiable, as tests verify.
LEAN_FUNCTIONS = frozenset({_Convolution, _GradientInOutput, _GradientInOperand, _AddZero})

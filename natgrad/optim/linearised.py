"""Residuals and their Jacobian at one point, from a closure's graph or from a model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from natgrad.autodiff.hooks import ROUNDING
from natgrad.autodiff.jacobian import Jacobian
from natgrad.autodiff.side_effects import Forward
from natgrad.flat import Slots
from natgrad.optim.objective import Start
from natgrad.optim.observed_model import ObservedModel
from natgrad.solvers.scaling import length, norm, power_of_two
from natgrad.solvers.singular_values import norms

Method = Literal["dense", "sample_space", "cg"]
# More backward passes than this for J cost more than conjugate gradients.
MAX_PASSES = 256
# For a J that the caller hands over, a decomposition is the only cost.
MAX_GIVEN = 4000
# The share of a gradient that a forward pass in bfloat16, or a spectral norm's next iteration,
# may change.
MISFIT = 0.1


class Linearised:
    """r (m,) and J (m, n) of ½‖r + J s‖². ``products`` counts products with J and with Jᵀ, two for
    JᵀJ; ``dense()`` forms J once, after which products are matrix-vector products."""

    def __init__(self, r: Tensor, matrix: Tensor | None, jacobian: Jacobian | None, n: int) -> None:
        self.r, self.n = r, n
        self._matrix, self._jacobian = matrix, jacobian
        self._given = matrix is not None
        self.products = 0
        self._norms: Tensor | None = None

    @property
    def cheapest(self) -> Method:
        """The solver for these sizes: see :class:`natgrad.optim.LevenbergMarquardt`."""
        m, n = len(self.r), self.n
        if min(m, n) > (MAX_GIVEN if self._given else MAX_PASSES):
            return "cg"
        return "dense" if n <= m else "sample_space"

    def forward(self, v: Tensor) -> Tensor:
        """J v (m,) for v (n,)."""
        self.products += 1
        if self._matrix is not None:
            return self._matrix @ v
        assert self._jacobian is not None
        return self._jacobian.forward(v)[0]

    def transpose(self, u: Tensor) -> Tensor:
        """Jᵀu (n,) for u (m,)."""
        self.products += 1
        if self._matrix is not None:
            return self._matrix.mT @ u
        assert self._jacobian is not None
        return self._jacobian.transpose((u,))

    def multiply(self, v: Tensor) -> Tensor:
        """JᵀJ v."""
        return self.transpose(self.forward(v))

    def dense(self) -> Tensor:
        """J (m, n)."""
        if self._matrix is None:
            assert self._jacobian is not None
            self._matrix = self._jacobian.to_dense()
        return self._matrix

    def column_norms(self) -> Tensor:
        """‖J eᵢ‖ (n,), from J, once."""
        if self._norms is None:
            self._norms = norms(self.dense(), 0)
        return self._norms

    def scaled(self, scale: Tensor) -> Linearised:
        """J D⁻¹ in place of J, which is formed."""
        return Linearised(self.r, self.dense() / scale, None, self.n)


def cauchy_length(
    linear: Linearised, g: Tensor, theta: Tensor, scale: Tensor | None = None
) -> float:
    """‖g‖³ / ‖J g‖², how far the model falls along −g; ‖θ‖, or 1, where J g = 0. In the coordinates
    D θ where there is a ``scale``."""
    g, theta = g.double(), theta.double()
    if scale is not None:
        g, theta = g / scale, scale * theta
    g_norm = length(g)
    unit = (g / power_of_two(g)) / norm(g / power_of_two(g))
    image = length(linear.forward((unit if scale is None else unit / scale).to(linear.r)))
    found = g_norm / image / image  # the square may leave the range
    if not bool((found > 0) & torch.isfinite(found)):
        found = length(theta)
    return float(found) or 1.0


def linearise(
    start: Start, observed: ObservedModel | None, jacobian: Callable[[], Tensor] | None
) -> Linearised:
    """Linearise the residuals that the closure returned, else those of a model's squared errors."""
    residuals = None if start.objective is None else start.objective.residuals
    if residuals is None:
        return _of_model(observed, start)
    return _of_residuals(residuals, start.parameters, jacobian)


def _of_residuals(
    residuals: Tensor, parameters: list[Tensor], jacobian: Callable[[], Tensor] | None
) -> Linearised:
    """The linearisation of residuals with their graph, or with J as ``jacobian()`` returns it."""
    slots = Slots(parameters)
    r = residuals.detach().reshape(-1)
    if jacobian is None:
        with torch.enable_grad():
            jacobian_of = Jacobian((residuals.reshape(-1),), slots)
            return Linearised(r, None, jacobian_of, slots.size)
    with torch.enable_grad():
        matrix = jacobian().detach()
    if matrix.shape != (len(r), slots.size) or matrix.dtype != r.dtype:
        raise ValueError(
            f"jacobian() must return ({len(r)}, {slots.size}) of {r.dtype}, residuals by trained "
            f"parameters, got {tuple(matrix.shape)} of {matrix.dtype}"
        )
    return Linearised(r, matrix, None, slots.size)


def _of_model(observed: ObservedModel | None, start: Start) -> Linearised:
    """The linearisation of r = √(2c) (y − t) for a loss c Σ (y − t)² of a model's outputs y.

    ∂loss/∂y = 2c (y − t), which a hook has seen, gives the residuals without the targets, and the
    loss gives c; c must be that of a sum or a mean, halved or not.
    """
    if observed is None or not observed.batches:
        raise RuntimeError(
            "LevenbergMarquardt needs residuals: return them from the closure, a tensor (m,), and "
            "call no backward; or give it the model, whose outputs a squared-error loss compares "
            "with targets, in training mode"
        )
    slots, outputs, gradients = Slots(start.parameters), [], []
    for batch in observed.batches:
        with observed.replayed(batch) as (call, data):
            forward = Forward(call, start.theta.device)
        with forward.replayed():
            output = forward(data)
        u = batch.output_gradient
        if not isinstance(output, Tensor) or u is None or u.shape != output.shape:
            raise ValueError("LevenbergMarquardt(model) needs a model whose output is one tensor")
        outputs.append(output)
        gradients.append(u.detach())
    roots = [math.sqrt(2 * c) for c in _weights(start.loss, gradients, outputs)]
    with torch.enable_grad():
        graph = torch.cat([root * y.reshape(-1) for root, y in zip(roots, outputs, strict=True)])
    r = torch.cat([u.to(graph).reshape(-1) / k for k, u in zip(roots, gradients, strict=True)])
    linear = Linearised(r, None, Jacobian((graph,), slots), slots.size)
    linear.r = _factor(linear, start.gradient) * r
    return linear


def _factor(linear: Linearised, gradient: Tensor) -> Tensor:
    """The k of gradient = k Jᵀr: 1 unless a GradScaler, clipping and the like scaled it."""
    mine, g = linear.transpose(linear.r).double(), gradient.double()
    k = mine @ g / (mine @ mine)
    misfit, size = norm(g - k * mine), norm(g)
    if bool(misfit <= MISFIT * size) or not bool(torch.isfinite(mine).all()):
        return k.to(gradient)
    # At an optimum both are rounding errors of 0: a product with 3 r, divided by 3, measures them.
    rounding = ROUNDING * norm(linear.transpose(3 * linear.r).double() / 3 - mine)
    if bool(misfit > MISFIT * size + rounding * torch.clamp(size / norm(mine), min=1.0)):
        raise _not_squared_errors("gradient")
    return torch.ones_like(k).to(gradient)


def _weights(loss: Tensor | None, gradients: list[Tensor], outputs: list[Tensor]) -> list[float]:
    """c of each batch, in loss = Σ over batches of c Σ (y − t)²."""
    counts = [output.numel() for output in outputs]
    samples = [output.shape[0] if output.ndim else 1 for output in outputs]
    batches = len(outputs)
    squares = [float(u.double().square().sum()) for u in gradients]
    if loss is None:  # a mean over all the batches, as other curvature takes it
        return [1 / (count * batches) for count in counts]
    means = [1 / count for count in counts]
    if not float(loss) > 0 or not sum(squares) > 0:
        return means
    rounding = max(1e-3, 4 * torch.finfo(gradients[0].dtype).eps)
    # Means over each batch, of all elements or of samples; else the same c for all batches.
    for weights, known in (
        (means, (1, 1 / batches)),
        ([1 / count for count in samples], (1, 1 / batches)),
        ([1.0] * batches, (1, 1 / sum(counts), 1 / sum(samples))),
    ):
        pairs = zip(squares, weights, strict=True)
        scale = sum(square / weight for square, weight in pairs) / (4 * float(loss))
        if any(abs(scale / (half * k) - 1) <= rounding for k in known for half in (1.0, 0.5)):
            return [scale * weight for weight in weights]
    raise _not_squared_errors("loss")


def _not_squared_errors(what: str) -> ValueError:
    return ValueError(
        f"the {what} is not that of a sum or mean of squared errors of the model's outputs (a "
        "regulariser, weights, another loss?): return the residuals themselves from the closure, "
        "with all of these in them"
    )

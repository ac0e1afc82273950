"""Poisson's equation −Δu = f on the unit cube, u = g on its boundary, solved by a tanh network.

Source: Dangel, Müller & Zeinhofer, *Kronecker-factored approximate curvature for physics-informed
neural networks*, NeurIPS 2024. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]
EVALUATION_POINTS = 10_000


@dataclass(frozen=True)
class Jet:
    """A layer's values (N, w), Laplacians (N, w) and first derivatives (d, N, w) by coordinates.

    First derivatives that all N points share may be (d, 1, w). No Laplacian stands for zero;
    without first derivatives, ``tanh`` yields values only.
    """

    value: Tensor
    laplacian: Tensor | None = None
    gradient: Tensor | None = None

    def linear(self, layer: nn.Linear) -> Jet:
        laplacian, gradient = (
            None if t is None else F.linear(t, layer.weight)
            for t in (self.laplacian, self.gradient)
        )
        return Jet(layer(self.value), laplacian, gradient)

    def tanh(self, *, last: bool) -> Jet:
        """Δ tanh(z) = tanh'(z) Δz + tanh''(z) ‖∇z‖²; ∇ tanh(z), which the ``last`` one need not."""
        value = self.value.tanh()
        if self.gradient is None:
            return Jet(value)
        slope = 1 - value.square()
        bend = -2 * value * self.gradient.square().sum(0)
        bend = bend if self.laplacian is None else bend + self.laplacian
        return Jet(value, slope * bend, None if last else slope * self.gradient)

    def point_by_point(self) -> Jet:
        """Shared first derivatives as if each point had its own."""
        if self.gradient is None:
            return self
        return Jet(self.value, self.laplacian, self.gradient.expand(-1, len(self.value), -1))

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.value, self.laplacian, self.gradient) if t is not None]


def jets(model: nn.Sequential, jet: Jet, *, point_by_point: bool = False) -> list[Jet]:
    """The input's and those that each layer puts out."""
    found = [jet]
    last = max(i for i, layer in enumerate(model) if isinstance(layer, nn.Tanh))
    for i, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            jet = jet.linear(layer)
            jet = jet.point_by_point() if point_by_point else jet
        elif isinstance(layer, nn.Tanh):
            jet = jet.tanh(last=i == last)
        else:
            raise TypeError(f"layers must be Linear or Tanh, got {type(layer).__name__}")
        found.append(jet)
    return found


def identity(x: Tensor) -> Jet:
    """The jet of x ↦ x at x (N, d)."""
    return Jet(x, gradient=torch.eye(x.shape[1]).to(x).unsqueeze(1))


def laplacian(model: nn.Sequential, x: Tensor) -> Tensor:
    """Δu (N,) at x (N, d), by forward propagation of Taylor coefficients."""
    found = jets(model, identity(x))[-1].laplacian
    assert found is not None
    return found.squeeze(1)


@dataclass(frozen=True)
class PoissonProblem:
    """Points (N, d) inside, (M, d) on the boundary, and others on which the error is measured."""

    name: str
    dimension: int
    solution: Function
    source: Function
    interior: Tensor
    boundary: Tensor
    evaluation: Tensor

    @cached_property
    def _source(self) -> Tensor:
        return self.source(self.interior)

    @cached_property
    def _boundary_values(self) -> Tensor:
        return self.solution(self.boundary)

    def residuals(self, model: nn.Sequential) -> Tensor:
        """r = [(Δu + f) / √N; (u − g) / √M], (N + M,). The loss is ½ ‖r‖²."""
        inside = laplacian(model, self.interior) + self._source
        outside = model(self.boundary).squeeze(1) - self._boundary_values
        return torch.cat([inside / len(inside) ** 0.5, outside / len(outside) ** 0.5])

    @torch.enable_grad()
    def jacobian(self, model: nn.Sequential) -> Tensor:
        """dr/dθ (N + M, P), columns in the order of ``model.parameters()``.

        One backward pass of Σᵢ rᵢ to the outputs of the linear layers: points do not mix there, so
        it holds the derivatives of every rᵢ, and row i is their outer products with the inputs.
        """
        N, M = len(self.interior), len(self.boundary)
        inside = jets(model, identity(self.interior), point_by_point=True)
        outside = jets(model, Jet(self.boundary))
        J = self.interior.new_empty(N + M, sum(p.numel() for p in model.parameters()))
        torch.cat(columns(model, inside, inside[-1].laplacian / N**0.5), 1, out=J[:N])
        torch.cat(columns(model, outside, outside[-1].value / M**0.5), 1, out=J[N:])
        return J

    @torch.no_grad()
    def error(self, model: nn.Sequential) -> float:
        """‖u − u*‖ / ‖u*‖ over the evaluation points."""
        exact = self.solution(self.evaluation)
        return float((model(self.evaluation).squeeze(1) - exact).norm() / exact.norm())


def columns(model: nn.Sequential, jets: list[Jet], of: Tensor) -> list[Tensor]:
    """Derivatives (N, ·) of ``of`` (N, 1) by weight and bias, weight and bias, point by point."""
    linears = [i for i, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    outputs = [t for i in linears for t in jets[i + 1].tensors()]
    slopes = iter(torch.autograd.grad(of.sum(), outputs, materialize_grads=True))
    found = []
    with torch.no_grad():
        for i in linears:
            value, *rest = (next(slopes) for _ in jets[i + 1].tensors())
            weight = torch.einsum("no,ni->noi", value, jets[i].value)
            for slope, entry in zip(rest, jets[i].tensors()[1:], strict=True):
                subscripts = "no,ni->noi" if slope.ndim == 2 else "kno,kni->noi"
                weight += torch.einsum(subscripts, slope, entry)
            found += [weight.flatten(1), value]
    return found


def network(dimension: int, seed: int, width: int = 64) -> nn.Sequential:
    """One hidden layer of ``tanh``; weights and biases uniform on ±1/√(inputs), as torch has it."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Linear] = [
        nn.utils.skip_init(nn.Linear, *sizes, dtype=torch.float64)  # type: ignore[no-untyped-call]
        for sizes in ((dimension, width), (width, 1))
    ]
    with torch.no_grad():
        for layer in layers:
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1])


def pose(
    name: str, solution: Function, source: Function, dimension: int, N: int, M: int, seed: int
) -> PoissonProblem:
    """With points uniform in the cube, and on its faces."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(count: int) -> Tensor:
        return torch.rand(count, dimension, generator=generator, dtype=torch.float64)

    interior, boundary, evaluation = uniform(N), uniform(M), uniform(EVALUATION_POINTS)
    face = torch.randint(2 * dimension, (M,), generator=generator)
    boundary[torch.arange(M), face // 2] = (face % 2).to(boundary)
    return PoissonProblem(name, dimension, solution, source, interior, boundary, evaluation)


def poisson_2d(seed: int) -> PoissonProblem:
    """u = sin(πx) sin(πy)."""

    def solution(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x).prod(1)

    def source(x: Tensor) -> Tensor:
        return 2 * math.pi**2 * solution(x)

    return pose("Poisson 2-d", solution, source, 2, 900, 120, seed)


def poisson_5d(seed: int) -> PoissonProblem:
    """u = Σᵢ cos(πxᵢ)."""

    def solution(x: Tensor) -> Tensor:
        return torch.cos(math.pi * x).sum(1)

    def source(x: Tensor) -> Tensor:
        return math.pi**2 * solution(x)

    return pose("Poisson 5-d", solution, source, 5, 3_000, 500, seed)

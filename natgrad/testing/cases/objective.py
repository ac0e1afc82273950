"""Functions of a vector, from a spectrum and a seed or with a name, in any unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

DOUBLE = torch.float64


@dataclass(frozen=True)
class Objective:
    """``scale`` times a function of x (n,), in float64.

    - "quadratic": ½ (x − x*)ᵀA(x − x*), A of these nonnegative ``eigenvalues`` in a random basis,
      from a standard normal distance to a standard normal x*;
    - "rosenbrock": 100 (x₂ − x₁²)² + (1 − x₁)², from (−1.2, 1);
    - "logarithm": log x from 1, which is NaN below 0 and has no minimum;
    - "nan": NaN, with a gradient of NaN, from (−1.2, 1).

    ``at_minimum`` starts there, where the gradient is exactly zero.
    """

    kind: str = "quadratic"
    eigenvalues: tuple[float, ...] = (1.0,)
    seed: int = 0
    scale: float = 1.0
    at_minimum: bool = False
    form: str = ""  # that of the optimizer's closure, its first where nothing is said

    def __repr__(self) -> str:
        given = [repr(self.kind)]
        if self.kind == "quadratic":
            given += [repr(tuple(float(f"{value:.6g}") for value in self.eigenvalues))]
            given += [f"seed={self.seed}"] if self.seed else []
        given += [f"scale={self.scale:g}"] if self.scale != 1 else []
        given += ["at_minimum=True"] if self.at_minimum else []
        return f"Objective({', '.join(given)})"

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """Basis (n, n), x* and start − x* (n,)."""
        draw, n = torch.Generator().manual_seed(self.seed), len(self.eigenvalues)
        basis = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=DOUBLE))[0]
        both = torch.randn(2, n, generator=draw, dtype=DOUBLE)
        return basis, both[0], both[1]

    @property
    def minimum(self) -> Tensor:
        """x*; of a logarithm, the edge of its domain."""
        if self.kind == "quadratic":
            return self._drawn[1]
        return torch.zeros(1, dtype=DOUBLE) if self.kind == "logarithm" else torch.ones(2).double()

    @property
    def start(self) -> Tensor:
        if self.at_minimum:
            return self.minimum.clone()
        if self.kind == "quadratic":
            return self._drawn[1] + self._drawn[2]
        return torch.tensor([1.0] if self.kind == "logarithm" else [-1.2, 1.0], dtype=DOUBLE)

    def residual_vector(self, x: Tensor) -> Tensor:
        """r with the value ½‖r‖²."""
        if self.kind == "logarithm":
            raise TypeError("a logarithm is no sum of squares")
        if self.kind == "quadratic":
            basis, minimum, _ = self._drawn
            singular = torch.tensor(self.eigenvalues, dtype=DOUBLE).sqrt()
            return math.sqrt(self.scale) * singular * (basis.mT @ (x - minimum))
        r = math.sqrt(2.0) * torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
        return math.sqrt(self.scale) * (r * math.nan if self.kind == "nan" else r)

    def value(self, x: Tensor) -> Tensor:
        if self.kind == "logarithm":
            return self.scale * x.log().sum()
        # The unit last: it must only multiply what a value of unit 1 is.
        return self.scale * (replace(self, scale=1.0).residual_vector(x).square().sum() / 2)

    def times(self, factor: float) -> Objective:
        return replace(self, scale=self.scale * factor)

    def distance(self, x: Tensor) -> float:
        """‖x − x*‖ by the distance at the start, at least 1 of it."""
        return float((x - self.minimum).norm()) / max(
            1.0, float((replace(self, at_minimum=False).start - self.minimum).norm())
        )

    def model(self) -> Point:
        return Point(self)

    def loss(self, model: nn.Module) -> Tensor:
        value: Tensor = model()
        return value

    def residuals(self, model: nn.Module) -> Tensor:
        assert isinstance(model, Point)
        return model.residuals()

    def code(self) -> str:
        """Lines of torch that make ``x``, the start, and ``f``, and need nothing of ours."""
        scale = "" if self.scale == 1 else f"{self.scale:.17g} * "
        rosenbrock = "(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)"
        start = [1.0] if self.kind == "logarithm" else [1.0, 1.0] if self.at_minimum else [-1.2, 1]
        named = {
            "rosenbrock": rosenbrock,
            "nan": f"float('nan') * {rosenbrock}",
            "logarithm": "x.log().sum()",
        }
        if self.kind in named:
            return (
                "import torch\n"
                f"x = torch.tensor({start}, dtype=torch.float64)\n"
                f"f = lambda x: {scale}{named[self.kind]}\n"
            )
        n, spectrum = len(self.eigenvalues), ", ".join(f"{v:.17g}" for v in self.eigenvalues)
        return (
            "import torch\n"
            f"draw = torch.Generator().manual_seed({self.seed})\n"
            f"Q, _ = torch.linalg.qr(torch.randn({n}, {n}, generator=draw, dtype=torch.float64))\n"
            f"minimum, away = torch.randn(2, {n}, generator=draw, dtype=torch.float64)\n"
            f"roots = torch.tensor([{spectrum}], dtype=torch.float64).sqrt()\n"
            f"x = minimum{'.clone()' if self.at_minimum else ' + away'}\n"
            f"f = lambda x: {scale}(roots * (Q.mT @ (x - minimum))).square().sum() / 2\n"
        )


class Point(nn.Module):
    """The module whose one parameter is ``x``, and whose output is the value there."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.x = nn.Parameter(objective.start.clone())

    def forward(self) -> Tensor:
        return self.objective.value(self.x)

    def residuals(self) -> Tensor:
        return self.objective.residual_vector(self.x)

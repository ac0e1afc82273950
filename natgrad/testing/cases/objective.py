"""Functions of a vector to minimise, by name or from a spectrum and a seed, in any unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

DOUBLE = torch.float64


@dataclass(frozen=True)
class Objective:
    """A function of x (n,) in float64, with a start.

    Attributes
    ----------
    kind
        - "quadratic": ½ (x − x*)ᵀA(x − x*) with A in a random basis, x* standard normal, started
          at a standard normal distance from x*;
        - "rosenbrock": 100 (x₂ − x₁²)² + (1 − x₁)², from (−1.2, 1);
        - "logarithm": log x from 1, which is NaN below 0 and has no minimum;
        - "nan": NaN, with a gradient of NaN, from (−1.2, 1).
    eigenvalues
        The eigenvalues of a quadratic function's A, none negative.
    seed
        Seed of a quadratic function's basis, minimum and start.
    scale
        A factor of the function, its unit.
    at_minimum
        Whether the start is the minimum, where the gradient is exactly zero.
    form
        The form of the optimizer's closure; "" is the optimizer's first.
    """

    kind: str = "quadratic"
    eigenvalues: tuple[float, ...] = (1.0,)
    seed: int = 0
    scale: float = 1.0
    at_minimum: bool = False
    form: str = ""

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
        """The minimum x* (n,); for a logarithm the edge of its domain."""
        if self.kind == "quadratic":
            return self._drawn[1]
        return torch.zeros(1, dtype=DOUBLE) if self.kind == "logarithm" else torch.ones(2).double()

    @property
    def start(self) -> Tensor:
        """The start (n,)."""
        if self.at_minimum:
            return self.minimum.clone()
        if self.kind == "quadratic":
            return self._drawn[1] + self._drawn[2]
        return torch.tensor([1.0] if self.kind == "logarithm" else [-1.2, 1.0], dtype=DOUBLE)

    def residual_vector(self, x: Tensor) -> Tensor:
        """Residuals r (m,) with the value ½‖r‖².

        Parameters
        ----------
        x
            The point (n,).

        Raises
        ------
        TypeError
            For a logarithm, which is no sum of squares.
        """
        if self.kind == "logarithm":
            raise TypeError("a logarithm is no sum of squares")
        if self.kind == "quadratic":
            basis, minimum, _ = self._drawn
            singular = torch.tensor(self.eigenvalues, dtype=DOUBLE).sqrt()
            return math.sqrt(self.scale) * singular * (basis.mT @ (x - minimum))
        r = math.sqrt(2.0) * torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
        return math.sqrt(self.scale) * (r * math.nan if self.kind == "nan" else r)

    def value(self, x: Tensor) -> Tensor:
        """The value at a point, with its graph.

        Parameters
        ----------
        x
            The point (n,).
        """
        if self.kind == "logarithm":
            return self.scale * x.log().sum()
        # The scale last: the value then is the unscaled one times scale, bit for bit.
        return self.scale * (replace(self, scale=1.0).residual_vector(x).square().sum() / 2)

    def times(self, factor: float) -> Objective:
        """The same function in another unit.

        Parameters
        ----------
        factor
            Multiplies the scale.
        """
        return replace(self, scale=self.scale * factor)

    def distance(self, x: Tensor) -> float:
        """‖x − x*‖ / max(1, ‖start − x*‖).

        Parameters
        ----------
        x
            The point (n,).
        """
        return float((x - self.minimum).norm()) / max(
            1.0, float((replace(self, at_minimum=False).start - self.minimum).norm())
        )

    def model(self) -> Point:
        """A module whose parameter is x, at the start."""
        return Point(self)

    def loss(self, model: nn.Module) -> Tensor:
        """The value at the parameter of a module.

        Parameters
        ----------
        model
            A module that :meth:`model` made.
        """
        value: Tensor = model()
        return value

    def residuals(self, model: nn.Module) -> Tensor:
        """The residuals (m,) at the parameter of a module.

        Parameters
        ----------
        model
            A module that :meth:`model` made.
        """
        assert isinstance(model, Point)
        return model.residuals()

    def code(self) -> str:
        """Code that makes ``x``, the start, and ``f``, and runs without natgrad."""
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
    """A module with the parameter ``x``, whose output is an objective's value there.

    Parameters
    ----------
    objective
        The objective, which gives the start.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.x = nn.Parameter(objective.start.clone())

    def forward(self) -> Tensor:
        """The value at ``x``."""
        return self.objective.value(self.x)

    def residuals(self) -> Tensor:
        """The residuals (m,) at ``x``."""
        return self.objective.residual_vector(self.x)

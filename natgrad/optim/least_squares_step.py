"""The step of a linearised least-squares problem for any radius, by one of three solvers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from natgrad.optim.linearised import Linearised, Method
from natgrad.solvers import SampleSpace, Solution, Status, SteihaugPath, cg, least_squares
from natgrad.solvers.scaling import as_float, dot, length, norm, power_of_two, quotient

CHUNK = 2**20  # elements of J that are converted to float64 at a time
MOST = sys.float_info.max


class LeastSquaresStep:
    """radius ↦ s minimising ½‖r + J s‖² + ½ λ‖D (s − s₀)‖² over ‖D (s − s₀)‖ <= radius.

    s₀ is the ``prior`` or 0, D the diagonal ``scale`` or I. ``Ax`` of an answer is JᵀJ s. One
    decomposition of J D⁻¹, or one Krylov path, serves every radius.
    """

    def __init__(
        self,
        linear: Linearised,
        method: Method,
        *,
        damping: float,
        prior: Tensor | None = None,
        scale: Tensor | None = None,
        rtol: float = 1e-6,
        max_iterations: int | None = None,
    ) -> None:
        self._linear, self._damping, self._scale, self._prior = linear, damping, scale, prior
        self._rtol, self._max_iterations = rtol, max_iterations
        self._path: SteihaugPath[Tensor] | None = None
        self._first_product: tuple[Tensor, Tensor] | None = None
        self._seen: tuple[Tensor, Tensor] | None = None  # the last s and J s
        if method == "cg":
            self._image: Callable[[Tensor], Tensor] = lambda v: linear.forward(v).double()
            self._pullback = linear.transpose
        else:
            self._direct = _decomposed(linear if scale is None else linear.scaled(scale), method)
            products = _Float64Products(linear)
            self._image, self._pullback = products.forward, products.transpose
        self._r = linear.r
        self._of_prior: tuple[Tensor, Tensor] | None = None  # J s₀ and JᵀJ s₀
        if prior is not None:
            image = linear.forward(prior)
            self._of_prior = image, linear.transpose(image)
            self._r = linear.r + image
        self._gradient = self._pullback(self._r)
        # In coordinates D (s − s₀), in which the radius bounds a ball.
        self._g = self._gradient if scale is None else self._gradient / scale
        if method == "cg":
            self._path = SteihaugPath(
                self._multiply, self._gradient, rtol=rtol, max_iterations=max_iterations
            )

    def __call__(self, *, radius: float) -> Solution[Tensor]:
        found = self._from_prior(radius)
        if self._prior is None or self._of_prior is None:
            found, image = self._at_least_cauchy(found, self._image(found.x), radius)
        else:
            # J of the rounded sum: rounding s₀ + s may lose more of the decrease than s gains.
            prior_image, Ax = self._of_prior
            image = self._image(self._prior + found.x) - prior_image
            found, image = self._at_least_cauchy(found, image, radius)
            found = replace(found, x=self._prior + found.x, Ax=Ax + found.Ax)
            image = prior_image + image
        self._seen = found.x, image
        return found

    def decrease(self, s: Tensor) -> float:
        """½‖r‖² − ½‖r + J s‖², by J s: at no product where s is the last answer.

        For long steps −(gᵀs + ½ sᵀJᵀJ s) would lose the decrease to rounding.
        """
        if self._seen is not None and torch.equal(s, self._seen[0]):
            image = self._seen[1]
        else:
            image = self._linear.forward(s).double()
        return -float(dot(self._linear.r, image) + image.square().sum() / 2)

    def norm(self, s: Tensor) -> Tensor:
        """‖D s‖, 0-d float64."""
        return length(s if self._scale is None else self._scale.double() * s)

    def bend(self, s: Solution[Tensor], second: Tensor, limit: float) -> Tensor:
        """½ a of the path θ + s t + ½ a t² (geodesic acceleration): (JᵀJ + (λ + μ) D²) a = −Jᵀr″,
        r″ (m,) the ``second`` derivative of r along s and μ the multiplier of s.

        Zero where ‖D a‖ > ``limit`` ‖D s‖: the series is not reliable there.
        """
        a = -self._direct(second, damping=self._damping + s.multiplier).x
        a = a if self._scale is None else a / self._scale
        trusted = self.norm(a) <= limit * self.norm(s.x)
        return torch.where(trusted, a / 2, 0.0)

    def _from_prior(self, radius: float) -> Solution[Tensor]:
        if self._path is not None:
            if radius < math.inf:
                found = self._path.solve(radius)
            else:
                found = cg(
                    self._multiply,
                    -self._gradient,
                    rtol=self._rtol,
                    max_iterations=self._max_iterations,
                )
            return replace(found, Ax=found.Ax - self._damping * found.x)
        found = self._direct(self._r, damping=self._damping, radius=radius)
        if self._scale is None:
            return replace(found, x=-found.x, Ax=-found.Ax)
        return replace(found, x=-found.x / self._scale, Ax=-found.Ax * self._scale)

    def _multiply(self, v: Tensor) -> Tensor:
        image = self._linear.forward(v)
        if self._first_product is None:
            self._first_product = v, image
        return self._linear.transpose(image) + self._damping * v

    def _at_least_cauchy(
        self, found: Solution[Tensor], image: Tensor, radius: float
    ) -> tuple[Solution[Tensor], Tensor]:
        """``found``, whose J s is the ``image``, or the Cauchy step where ``found`` lowers the
        damped model by less than half as much, with its J s: a solver's truncation or rounding must
        not end the descent.

        The Cauchy step is −α g / ‖g‖, α at most the radius, in coordinates D (s − s₀). It lowers
        ½‖r + J s‖² + ½ λ‖s‖² by β² (a c − ½ a²), for β that of r, β c = ‖g‖ / κ, β a = α κ
        and the curvature κ².
        """
        if self._path is not None and self._first_product is None:  # the gradient is zero
            return found, image
        scale = power_of_two(self._r).double()
        hat, r = image / scale, self._r.double() / scale
        lower = -(dot(r, hat) + hat.square().sum() / 2) - self._rounding(found.x, scale, r + hat)
        e, e_image = self._steepest
        beta, g, curvature, lowered, size = torch.stack(
            [scale, length(self._g), length(e_image), lower, self.norm(found.x)]
        ).tolist()
        root = math.sqrt(self._damping)
        kappa = math.hypot(curvature, root)
        if not (math.isfinite(g) and 0 < kappa < math.inf):
            return found, image
        c = as_float(*quotient((g,), (beta, kappa)))
        bound = as_float(*quotient((radius, kappa), (beta,)))
        a = min(c, bound)
        # A solution that left the dtype's range lowers nothing.
        lowered = -1.0 if found.status is Status.NONFINITE else lowered
        if not a > 0 or lowered - (root * size / beta) ** 2 / 2 >= a * (c - a / 2) / 2:
            return found, image
        alpha = radius if a == bound else as_float(*quotient((a, beta), (kappa,)))
        x, image = (-alpha * e).to(self._r), -alpha * e_image
        Ax = self._pullback(image.to(self._r)).to(x)
        if not bool(torch.isfinite(x).all() & torch.isfinite(Ax).all()):
            return found, image
        multiplier = min(as_float(*quotient((g,), (alpha,))), MOST) if a == bound else 0.0
        return replace(
            found,
            x=x,
            Ax=Ax,
            status=Status.BOUNDARY if multiplier else Status.STAGNATED,
            residual_norm=math.nan,
            multiplier=multiplier,
        ), image

    def _rounding(self, s: Tensor, scale: Tensor, rest: Tensor) -> Tensor:
        """A bound on the rounding error of the decrease along s, where parts of J s cancel."""
        if self._path is not None or s.dtype != torch.float64:
            return scale.new_zeros(())  # J s contains the float32 rounding of s; CG cancels less
        error = torch.finfo(s.dtype).eps * dot(self._column_norms / scale, s.abs())
        return error * (norm(rest) + error)

    @cached_property
    def _column_norms(self) -> Tensor:
        return self._linear.column_norms()

    @cached_property
    def _steepest(self) -> tuple[Tensor, Tensor]:
        """g / ‖g‖ = D e, as e, and J e; float64."""
        if self._path is None:
            e = self._g / power_of_two(self._g)
            e = e / norm(e)
            e = e if self._scale is None else e / self._scale
            return e, self._image(e)
        # Both Krylov solvers set out along ±g: no product is taken for it again.
        assert self._first_product is not None
        v, image = self._first_product
        sign = torch.where(dot(v / power_of_two(v), self._gradient) > 0, 1.0, -1.0)
        return v.double() * (sign / length(v)), image.double() * (sign / length(v))


class _Float64Products:
    """Products with a J that is formed, summed in float64; :func:`natgrad.sample_space` asks for
    ``to_dense()`` = J Jᵀ and ``transpose``."""

    def __init__(self, linear: Linearised) -> None:
        self._linear = linear

    def forward(self, v: Tensor) -> Tensor:
        """J v."""
        self._linear.products += 1
        pieces = zip(self._columns(), torch.split(v, self._width), strict=True)
        return torch.stack([J @ piece.double() for J, piece in pieces]).sum(dim=0)

    def transpose(self, u: Tensor) -> Tensor:
        """Jᵀu."""
        self._linear.products += 1
        return torch.cat([J.mT @ u.double() for J in self._columns()])

    def to_dense(self) -> Tensor:
        """J Jᵀ (m, m) in float64: float32 cannot hold the squares."""
        r = self._linear.r
        total = r.new_zeros(len(r), len(r), dtype=torch.float64)
        for J in self._columns():
            total.addmm_(J, J.mT)
        return total

    @property
    def _width(self) -> int:
        if self._linear.dense().dtype == torch.float64:
            return self._linear.n
        return max(CHUNK // len(self._linear.r), 1)

    def _columns(self) -> Iterator[Tensor]:
        """J in float64, some columns at a time: a copy of a wide J is more memory than J."""
        return (piece.double() for piece in torch.split(self._linear.dense(), self._width, dim=1))


def _decomposed(J: Linearised, method: Method) -> Callable[..., Solution[Tensor]]:
    if method == "dense":
        return least_squares(J.dense()).solve
    # If J has the rounding error eps, J Jᵀ resolves squares of singular values down to eps².
    eps = torch.finfo(J.r.dtype).eps
    space = SampleSpace(_Float64Products(J), rounding=max(eps**2, torch.finfo(torch.float64).eps))
    if space.lost:
        return least_squares(J.dense()).solve

    def solve(r: Tensor, **given: float) -> Solution[Tensor]:
        found = space.solve(r.double(), **given)
        x, Ax = found.x.to(r), found.Ax.to(r)
        if bool(torch.isfinite(x).all() & torch.isfinite(Ax).all()):
            return replace(found, x=x, Ax=Ax)
        nothing = torch.zeros_like(x)
        return replace(found, x=nothing, Ax=nothing, status=Status.NONFINITE)

    return solve

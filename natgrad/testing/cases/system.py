"""A linear system A x = b, from a spectrum and a seed, and an operator that counts products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class System:
    """A x = b with a symmetric A in a random orthogonal basis and a standard normal b.

    Attributes
    ----------
    eigenvalues
        The eigenvalues of A before its scale.
    seed
        Seed of the basis and b.
    A_scale, b_scale
        Factors of A and b, their units.
    dtype
        The dtype to which A and b, formed in float64, are rounded.
    """

    eigenvalues: tuple[float, ...]
    seed: int = 0
    A_scale: float = 1.0
    b_scale: float = 1.0
    dtype: torch.dtype = torch.float64

    def __repr__(self) -> str:
        given = [f"eigenvalues={tuple(float(f'{value:.6g}') for value in self.eigenvalues)}"]
        given += [f"seed={self.seed}"] if self.seed else []
        given += [f"A_scale={self.A_scale:g}"] if self.A_scale != 1 else []
        given += [f"b_scale={self.b_scale:g}"] if self.b_scale != 1 else []
        given += [f"dtype={self.dtype}"] if self.dtype != torch.float64 else []
        return f"System({', '.join(given)})"

    def __len__(self) -> int:
        return len(self.eigenvalues)

    @cached_property
    def basis(self) -> Tensor:
        """Eigenvectors of A, as columns, in float64."""
        n = len(self)
        normal = torch.randn(n, n, generator=self._generator(), dtype=torch.float64)
        basis: Tensor = torch.linalg.qr(normal)[0]
        return basis

    @cached_property
    def A(self) -> Tensor:
        """The matrix (n, n)."""
        spectrum = torch.tensor(self.eigenvalues, dtype=torch.float64) * self.A_scale
        A = (self.basis * spectrum) @ self.basis.mT
        return ((A + A.mT) / 2).to(self.dtype)

    @cached_property
    def b(self) -> Tensor:
        """The right-hand side (n,)."""
        return (self.vectors(1)[:, 0] * self.b_scale).to(self.dtype)

    @property
    def eps(self) -> float:
        """The machine precision of ``dtype``."""
        return torch.finfo(self.dtype).eps

    @property
    def condition(self) -> float:
        """The condition of A on its range: the ratio of absolute eigenvalues that are not zero."""
        sizes = [abs(value) for value in self.eigenvalues if value]
        return max(sizes) / min(sizes) if sizes else 1.0

    @property
    def distinct(self) -> int:
        """The number of distinct eigenvalues that are not zero."""
        return len({value for value in self.eigenvalues if value})

    def vectors(self, count: int) -> Tensor:
        """Standard normal vectors (n, count) in float64; the first is b before its scale.

        Parameters
        ----------
        count
            The number of vectors.
        """
        generator = self._generator(1)
        return torch.randn(count, len(self), generator=generator, dtype=torch.float64).mT

    def scaled(self, A_scale: float, b_scale: float) -> System:
        """The system in other units.

        Parameters
        ----------
        A_scale, b_scale
            Multiply the scales.
        """
        return replace(self, A_scale=self.A_scale * A_scale, b_scale=self.b_scale * b_scale)

    def in_dtype(self, dtype: torch.dtype) -> System:
        """The system in another dtype.

        Parameters
        ----------
        dtype
            As the attribute.
        """
        return replace(self, dtype=dtype)

    def relative_residual(self, x: Tensor) -> float:
        """‖b − A x‖ / ‖b‖ in float64, safe from overflow.

        Parameters
        ----------
        x
            The solution to judge (n,); A, b and x are taken as rounded.
        """
        A, b, x = self.A.double(), self.b.double(), x.double()
        unit = b.abs().max()
        r = b / unit - (A / A.abs().max()) @ (x * (A.abs().max() / unit))
        return float(r.norm() / (b / unit).norm())

    def rounding(self, x: Tensor) -> float:
        """The rounding error of :meth:`relative_residual`, 4 eps (‖A‖ ‖x‖ / ‖b‖ + 1).

        Parameters
        ----------
        x
            The solution to judge (n,).
        """
        unit = self.b_scale / self.A_scale
        sizes = float((x.double() / unit).norm()) / float((self.b.double() / self.b_scale).norm())
        return 4 * torch.finfo(torch.float64).eps * (sizes + 1)

    def code(self) -> str:
        """Code that makes ``A`` and ``b``, and runs without natgrad."""
        n, cast = len(self), "" if self.dtype == torch.float64 else f".to({self.dtype})"
        spectrum = ", ".join(f"{value:.12g}" for value in self.eigenvalues)
        A_scale, b_scale = (
            "" if scale == 1 else f" * {scale:.17g}" for scale in (self.A_scale, self.b_scale)
        )
        draw = "torch.Generator().manual_seed({})"
        return (
            f"values = torch.tensor([{spectrum}], dtype=torch.float64){A_scale}\n"
            f"draw = {draw.format(2 * self.seed)}\n"
            f"Q, _ = torch.linalg.qr(torch.randn({n}, {n}, generator=draw, dtype=torch.float64))\n"
            "A = (Q * values) @ Q.mT\n"
            f"A = (A + A.mT).div(2){cast}\n"
            f"draw = {draw.format(2 * self.seed + 1)}\n"
            f"b = torch.randn(1, {n}, generator=draw, dtype=torch.float64)[0]{b_scale}\n"
            + (f"b = b{cast}\n" if cast else "")
        )

    def _generator(self, stream: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(2 * self.seed + stream)


class Counted:
    """A matrix known by its products ``A @ v`` or ``A(v)``, which are counted and bounded.

    Parameters
    ----------
    matrix
        The matrix (n, n).
    nan_from
        The number, from 1, of the first product that is NaN; those after it are NaN too.
    limit
        Products after which the next raises ``AssertionError``, to end an endless loop.
    """

    def __init__(self, matrix: Tensor, *, nan_from: int | None = None, limit: int = 20_000) -> None:
        self.matrix, self.nan_from, self.limit = matrix, nan_from, limit
        self.shape, self.dtype, self.device = tuple(matrix.shape), matrix.dtype, matrix.device
        self.count = 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.count += 1 if v.ndim == 1 else v.shape[1]
        assert self.count <= self.limit, f"no end after {self.limit} products"
        if self.nan_from is not None and self.count >= self.nan_from:
            return torch.full_like(v, torch.nan)
        return self.matrix @ v

    __call__ = __matmul__

    def to_dense(self) -> Tensor:
        """The matrix itself (n, n)."""
        return self.matrix

"""A layer's block G ⊗ A: products, eigenbasis, damped solves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from natgrad.autodiff.layers import Layer
from natgrad.curvature.kronecker.blocks import DampingSplit, require_finite, shifted, singular


class KroneckerBlock:
    """The block V ↦ G V A on a layer's gradient matrices V (d_out, d_in).

    Factorisations are computed in float64: eigenvectors of a float32 factor would carry errors of
    the size of small dampings.

    Parameters
    ----------
    layer
        The layer, whose parameters are the block's owners.
    A
        The input factor (d_in, d_in), or its diagonal (d_in,) for an embedding.
    G
        The output factor (d_out, d_out).

    Raises
    ------
    NonFiniteFactors
        If a factor holds NaN or infinity.
    """

    def __init__(self, layer: Layer, A: Tensor, G: Tensor) -> None:
        require_finite(f"the factors of {layer.module}", A, G)
        self.owners: Sequence[Tensor] = layer.owners
        self._layer, self._A, self._G = layer, A, G
        self._eigen: _Eigenbasis | None = None
        self._corrected = False
        self._inverses: tuple[float, Tensor, Tensor] | None = None

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """A, G, and the corrected eigenvalues (d_out, d_in) if there are any."""
        moments = (self._eigenbasis().values.to(self._A),) if self._corrected else ()
        return self._A, self._G, *moments

    def blend(self, earlier: KroneckerBlock, decay: float) -> None:
        """Average the factors with an earlier block's, whose weight is ``decay``.

        Call it before :meth:`correct`, which works in the eigenbasis of the averaged factors.
        """
        self._A = torch.lerp(self._A, earlier._A, decay)
        self._G = torch.lerp(self._G, earlier._G, decay)
        self._eigen = self._inverses = None

    def blend_moments(self, earlier: KroneckerBlock, decay: float) -> None:
        """Average the corrected eigenvalues with an earlier block's, whose weight is ``decay``.

        Call it after :meth:`correct`. The earlier eigenvalues are replaced by the diagonal, in the
        new basis, of the matrix that they describe in the old one.
        """
        old, new = earlier._eigenbasis(), self._eigenbasis()
        turned = (new.U_G.mT @ old.U_G).square() @ old.values
        if old.U_A is not None and new.U_A is not None:
            turned = turned @ (old.U_A.mT @ new.U_A).square()
        self.correct(torch.lerp(new.values, turned, decay))

    def multiply(self, pieces: list[Tensor]) -> list[Tensor]:
        V = self._layer.matrix(pieces)
        if self._corrected:
            eigen = self._eigenbasis()
            coordinates = eigen.values.to(V) * eigen.to_coordinates(V)
            return self._layer.pieces(eigen.from_coordinates(coordinates))
        V = self._G @ V
        return self._layer.pieces(V * self._A if self._A.ndim == 1 else V @ self._A)

    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]:
        V = self._layer.matrix(pieces)
        if split is DampingSplit.TRACE:
            return self._layer.pieces(self._solve_factored(V, damping))
        eigen = self._eigenbasis()
        damped = eigen.values + damping
        if not bool(damped.min() > torch.finfo(damped.dtype).eps * damped.max()):
            raise singular(damping, f"the factors of {self._layer.module}")
        coordinates = (eigen.to_coordinates(V) / damped).to(V)
        return self._layer.pieces(eigen.from_coordinates(coordinates))

    def rotated_inputs(self) -> Tensor:
        """Return the layer's inputs (N, R, d_in) in the eigenbasis of A.

        If A is diagonal, its indices of words (N, R) are returned as they are.
        """
        basis, rows = self._eigenbasis().U_A, self._layer.rows()
        if basis is None:
            return rows
        if self._layer.is_embedding:  # the rows are indices of unit vectors
            return basis.to(self._A)[rows]
        return rows @ basis.to(rows)

    def second_moment(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Compute Σ_n (Σ_r g_nr a_nrᵀ)², squared entry by entry (d_out, d_in), in the eigenbasis.

        Parameters
        ----------
        inputs
            a, the result of :meth:`rotated_inputs`.
        gradients
            g (N, R, d_out), the layer's output gradients.
        """
        eigen = self._eigenbasis()
        g = gradients @ eigen.U_G.to(gradients)
        if eigen.U_A is None:
            return _second_moment_of_words(inputs, g, len(self._A))
        if g.shape[1] == 1:
            return g[:, 0].square().mT @ inputs[:, 0].square()
        total = g.new_zeros(g.shape[2], inputs.shape[2])
        # Per-sample gradients are formed in slices of about 64 MB, to bound the memory.
        step = max(1, 2**24 // max(total.numel(), 1))
        for start in range(0, len(g), step):
            span = slice(start, start + step)
            total += (g[span].mT @ inputs[span]).square().sum(dim=0)
        return total

    def correct(self, values: Tensor) -> None:
        """Replace the eigenvalues by second moments (d_out, d_in).

        They are rounded to the factors' dtype, so that :attr:`factors` restore them exactly.
        """
        eigen = self._eigenbasis()
        self._eigen = _Eigenbasis(eigen.U_G, eigen.U_A, values.to(self._A).double())
        self._corrected = True

    def _eigenbasis(self) -> _Eigenbasis:
        if self._eigen is None:
            G_values, U_G = torch.linalg.eigh(self._G.double())
            if self._A.ndim == 1:
                A_values, U_A = self._A.double(), None
            else:
                A_values, U_A = torch.linalg.eigh(self._A.double())
            values = torch.outer(G_values.clamp(min=0.0), A_values.clamp(min=0.0))
            self._eigen = _Eigenbasis(U_G, U_A, values)
        return self._eigen

    def _solve_factored(self, V: Tensor, damping: float) -> Tensor:
        """Solve with the damping split between the factors (TRACE), keeping the inverses."""
        if self._inverses is None or self._inverses[0] != damping:
            A, G = self._A.double(), self._G.double()
            A_mean = (A if A.ndim == 1 else A.diagonal()).mean()
            G_mean = G.diagonal().mean()
            # Roots of each mean: a product of the two would underflow if a layer is nearly dead.
            pi = torch.where((A_mean > 0) & (G_mean > 0), A_mean.sqrt() / G_mean.sqrt(), 1.0)
            root = math.sqrt(damping)
            left = _inverse(shifted(G, root / pi))
            right = 1 / (A + root * pi) if A.ndim == 1 else _inverse(shifted(A, root * pi))
            if not bool(torch.isfinite(left).all() & torch.isfinite(right).all()):
                raise singular(damping, f"a factor of {self._layer.module}")
            self._inverses = damping, left.to(V), right.to(V)
        _, left, right = self._inverses
        V = left @ V
        return V * right if right.ndim == 1 else V @ right


def _second_moment_of_words(words: Tensor, g: Tensor, vocabulary: int) -> Tensor:
    """Compute the second moment (d_out, V) of an embedding's per-sample gradients.

    For each word it sums, over samples, the squares of the sum of g at the word's positions.

    Parameters
    ----------
    words
        The indices of the words (N, R).
    g
        The output gradients (N, R, d_out) in the eigenbasis of G.
    vocabulary
        V, the number of words.
    """
    samples = torch.arange(len(words), device=words.device).unsqueeze(1)
    pairs, place = torch.unique((samples * vocabulary + words).flatten(), return_inverse=True)
    sums = g.new_zeros(len(pairs), g.shape[2]).index_add(0, place, g.flatten(0, 1))
    total = g.new_zeros(vocabulary, g.shape[2])
    return total.index_add(0, pairs % vocabulary, sums.square()).mT


class _Eigenbasis:
    """Eigenvectors of G and A (None if A is diagonal) and the eigenvalues (d_out, d_in)."""

    def __init__(self, U_G: Tensor, U_A: Tensor | None, values: Tensor) -> None:
        self.U_G, self.U_A, self.values = U_G, U_A, values

    def to_coordinates(self, V: Tensor) -> Tensor:
        """Compute U_Gᵀ V U_A."""
        V = self.U_G.mT.to(V) @ V
        return V if self.U_A is None else V @ self.U_A.to(V)

    def from_coordinates(self, V: Tensor) -> Tensor:
        """Compute U_G V U_Aᵀ."""
        V = self.U_G.to(V) @ V
        return V if self.U_A is None else V @ self.U_A.mT.to(V)


def _inverse(matrix: Tensor) -> Tensor:
    """Invert a positive definite matrix; return NaN if it is not positive definite.

    Products with an inverse take a quarter of the time of triangular solves with many right-hand
    sides.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    # A failed factorisation may leave a zero on the diagonal, for which some kernels raise an
    # error: put the identity in its place.
    succeeded = info == 0
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    inverse = torch.cholesky_inverse(torch.where(succeeded, factor, identity))
    return torch.where(succeeded, inverse, torch.nan)

"""K-FAC and E-KFAC: the Fisher matrix of layers as Kronecker products of small factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import flat
from natgrad.autodiff.layers import candidates
from natgrad.curvature.kronecker.blocks import Block, DampingSplit, DenseBlock, DiagonalBlock
from natgrad.curvature.kronecker.estimate import estimated_blocks
from natgrad.curvature.kronecker.factors import Sharing, require_samples_drawn
from natgrad.curvature.kronecker.layer_block import KroneckerBlock
from natgrad.curvature.metrics import Distributions
from natgrad.curvature.operator import LinearOperator
from natgrad.flat import Slots

MAX_DENSE = 1000  # elements outside layers that get a dense block


class Kronecker(LinearOperator):
    """Block-diagonal K ≈ F of layers, G ⊗ A for each, with a direct :meth:`solve`.

    A = E[a aᵀ] is the second moment of a layer's inputs (a 1 appended for the bias), G = E[g gᵀ]
    that of its output gradients under labels of the model.

    Parameters
    ----------
    model
        A module with Linear, Conv1d, Conv2d (one group) and Embedding layers. Dimension 0 of their
        inputs must be the batch.
    data
        The argument of ``forward``.
    forward
        Calls the model on ``data`` and returns a distribution or independent ones. None: the model
        itself.
    parameters
        The parameters, n elements, in the order of the vectors. None: the model's. Those outside
        layers (norms, log σ) or also used in other ways (tied weights) get one exact dense block
        together, up to 1,000 elements; beyond, an unbiased diagonal if labels are drawn. Those that
        the outputs do not reach have zero rows.
    samples
        None computes G exactly, from the square root of the output metric, for batch elements that
        do not interact: C backward passes for C output parameters. k draws k labels a batch
        element: unbiased, for any batch shape, k backward passes. Set 1 if C is large.
    sharing
        How positions that share weights enter the factors. Set REDUCE for one output a sample.
    corrected
        Whether to make it E-KFAC: eigenvalues are replaced by second moments of per-sample
        gradients in the eigenbasis. More accurate; the backward passes are made again.
    generator
        Draws the labels; required with ``samples``.
    previous
        The operator of an earlier batch, to make the factors a moving average. Layers that this
        batch does not reach keep their earlier factors.
    decay
        The weight of ``previous``; this batch has the rest. Raise it if batches are small.

    Attributes
    ----------
    corrected
        Whether this is E-KFAC.

    Raises
    ------
    ValueError
        If too many parameters are outside layers, exact factors are asked for a batch of several
        dimensions, or ``samples`` lacks a generator.
    NotTwiceDifferentiable
        If layers are in a reentrant checkpoint, or a backward pass is not a linear map.

    Notes
    -----
    K is exact (equal to the layer's Fisher block) for one sample if no weights are shared, and for
    deep linear networks with a metric that does not depend on the input. Forward passes have no
    side effects, as in :class:`Fisher`. Hooks of parameters, modules and tensors are not run.
    Copies and pickles hold copies of layers and parameters, and give the same products.

    Cost: set-up one forward and the backward passes above, Σ (d_in² + d_out²) memory; a product
    Σ d_in d_out (d_in + d_out); a solve the same, plus a factorisation for every new damping
    (TRACE: Cholesky) or one in all (EXACT: eigenvectors, about ten times as expensive).

    Source: Martens & Grosse 2015; Grosse & Martens 2016 (convolutions); George et al. 2018
    (E-KFAC); Eschenhagen et al. 2023 (expand and reduce).

    Examples
    --------
    >>> model = nn.Linear(2, 3, bias=False)
    >>> K = Kronecker(
    ...     model, torch.eye(2), forward=lambda x: torch.distributions.Categorical(logits=model(x))
    ... )
    >>> K.shape, K.solve(torch.ones(6), damping=0.1).shape
    ((6, 6), torch.Size([6]))
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        forward: Callable[[Any], Distributions] | None = None,
        parameters: Iterable[Tensor] | None = None,
        samples: int | None = None,
        sharing: Sharing = Sharing.EXPAND,
        corrected: bool = False,
        generator: torch.Generator | None = None,
        previous: Kronecker | None = None,
        decay: float = 0.95,
    ) -> None:
        self._slots = Slots(model.parameters() if parameters is None else parameters)
        first = self._slots.parameters[0]
        super().__init__(self._slots.size, self._slots.dtype, first.device)
        if samples is not None:
            require_samples_drawn(samples)
            if generator is None:
                raise ValueError(
                    "drawn labels need generator=torch.Generator().manual_seed(...), so that the "
                    "draw can be repeated"
                )
        self.corrected = corrected
        self._blocks = estimated_blocks(
            model,
            data,
            forward or model,
            self._slots,
            samples=samples,
            sharing=sharing,
            corrected=corrected,
            generator=generator,
            earlier={} if previous is None else previous._blocks_by_owners(),
            decay=decay,
            max_dense=MAX_DENSE,
        )

    @classmethod
    def restored(
        cls,
        model: nn.Module,
        parameters: Iterable[Tensor],
        blocks: Iterable[tuple[list[Tensor], tuple[Tensor, ...]]],
        *,
        corrected: bool = False,
    ) -> Kronecker:
        """Build the operator again from its :meth:`factors`.

        Parameters
        ----------
        model
            The module that holds the layers.
        parameters
            The parameters, in the order of the vectors.
        blocks
            The result of :meth:`factors`, with the parameters of ``model``.
        corrected
            Whether the operator was E-KFAC.
        """
        operator = cls.__new__(cls)
        operator._slots = Slots(parameters)
        first = operator._slots.parameters[0]
        size, dtype = operator._slots.size, operator._slots.dtype
        LinearOperator.__init__(operator, size, dtype, first.device)
        operator.corrected = corrected
        layers = {
            tuple(layer.owners): layer for layer in candidates(model, operator._slots.trained)
        }
        operator._blocks = []
        for owners, factors in blocks:
            if len(factors) == 1:
                kind = DenseBlock if factors[0].ndim == 2 else DiagonalBlock
                operator._blocks.append(kind(owners, factors[0]))
                continue
            layer = layers[tuple(owners)]
            A, G, *moments = factors
            block = KroneckerBlock(layer, A, G)
            if moments:
                block.correct(moments[0])
            operator._blocks.append(block)
        return operator

    def factors(self) -> list[tuple[list[Tensor], tuple[Tensor, ...]]]:
        """Return the parameters and the tensors of every block, for :meth:`restored`.

        The tensors are A and G of a layer, then the eigenvalues if corrected; one matrix or
        diagonal for parameters outside layers.
        """
        return [(list(block.owners), block.factors) for block in self._blocks]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters, in the vector's order."""
        return self._slots.parameters

    @property
    def reached(self) -> tuple[Tensor, ...]:
        owned = {owner for block in self._blocks for owner in block.owners}
        return tuple(parameter for parameter in self._slots.parameters if parameter in owned)

    def _blocks_by_owners(self) -> dict[tuple[Tensor, ...], Block]:
        return {tuple(block.owners): block for block in self._blocks}

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._blockwise(matrix, lambda block, pieces: block.multiply(pieces))

    def solve(
        self, b: Tensor, *, damping: float = 0.0, split: DampingSplit = DampingSplit.EXACT
    ) -> Tensor:
        """Compute (K + λ I)⁻¹ b by factorisations, which are kept for the next call.

        Parameters
        ----------
        b
            A right-hand side (n,), or k of them (n, k).
        damping
            λ >= 0. Raise it if K is singular or estimated from few samples. Frozen and unused
            parameters have zero rows, where the solution is b / λ.
        split
            How λ enters: exactly, or with TRACE as √λ / π and π √λ added to the factors, which is
            cheaper if λ changes with the factors.

        Returns
        -------
        Tensor
            The solution, shaped like b.

        Raises
        ------
        ValueError
            If the damping is negative, not finite, or too small for a singular K; or for TRACE if K
            is corrected, and so not a Kronecker product.
        """
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping must be finite and >= 0, got {damping}")
        if split is DampingSplit.TRACE and self.corrected:
            raise ValueError("a corrected (E-KFAC) matrix has only the EXACT damping")
        matrix = self._as_matrix(b)
        covered = sum(flat.size(owner) for block in self._blocks for owner in block.owners)
        if not damping and covered < self.shape[0]:
            raise ValueError(
                "some parameters are frozen or unused, their rows zero: solve needs damping > 0"
            )
        solution = self._blockwise(
            matrix, lambda block, pieces: block.solve(pieces, damping, split), rest=damping
        )
        return solution.view(b.shape)

    def _blockwise(
        self,
        matrix: Tensor,
        act: Callable[[Block, list[Tensor]], list[Tensor]],
        rest: float | None = None,
    ) -> Tensor:
        """Apply ``act`` to each block and its rows; divide other rows by ``rest``, or zero them."""
        result = torch.zeros_like(matrix) if not rest else matrix / rest
        for block in self._blocks:
            spans = [self._slots.span(owner) for owner in block.owners]
            pieces = [
                matrix[span].reshape(*flat.as_real(owner).shape, matrix.shape[1])
                for span, owner in zip(spans, block.owners, strict=True)
            ]
            for span, piece in zip(spans, act(block, pieces), strict=True):
                result[span] = piece.reshape(-1, matrix.shape[1])
        return result

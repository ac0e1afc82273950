"""K-FAC and E-KFAC: a Fisher matrix of layers as Kronecker products of small factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.autodiff.graph import Graph
from natgrad.autodiff.layers import Layer, candidates, recorded_layers, verified
from natgrad.autodiff.side_effects import Forward, preserved_buffers
from natgrad.autodiff.slots import Slots
from natgrad.curvature.fisher import Fisher
from natgrad.curvature.kronecker.blocks import (
    Block,
    DampingSplit,
    DenseBlock,
    DiagonalBlock,
    KroneckerBlock,
)
from natgrad.curvature.kronecker.factors import (
    Sharing,
    correct,
    layer_factors,
    require_samples,
    require_samples_drawn,
)
from natgrad.curvature.kronecker.output_gradients import OutputGradients, checked_outputs
from natgrad.curvature.metrics import Distributions, batch_shape
from natgrad.curvature.operator import LinearOperator

MAX_DENSE = 1000


class Kronecker(LinearOperator):
    """Block-diagonal K ≈ F: for each layer G ⊗ A, with A = E[a aᵀ] of its inputs (a 1 appended for
    the bias) and G = E[g gᵀ] of its output gradients under the model's own labels.

    ``model`` holds Linear, Conv1d, Conv2d (one group) and Embedding layers, called by
    ``forward(data)``, by default ``model(data)``, which returns a distribution or independent ones.
    ``parameters`` (default: the model's) fix the order of the vector. Dimension 0 of what a layer
    sees must be the batch. Parameters outside such layers (norms, log σ) or used in other ways too
    (tied weights) get one exact dense Fisher block together, up to 1,000 of them, and with drawn
    labels an unbiased diagonal beyond; parameters that the outputs do not reach have zero rows.

    ``samples=None`` takes G exactly, by the square root of the output metric: C backward passes for
    C output parameters, for batch elements that do not interact. ``samples=k`` draws k labels a
    batch element with ``generator``: k backward passes, any batch shape, unbiased. ``corrected``
    makes it E-KFAC: the eigenvalues are replaced by the second moments of per-sample gradients in
    the eigenbasis, at the cost of the backward passes again.

    Exact (equal to the layer's Fisher block) for one sample where no weights are shared, and for
    deep linear networks with a metric that does not depend on the input. Forward passes leave no
    trace, as in :class:`Fisher`.

    ``previous`` makes the factors a moving average: ``decay`` times the earlier operator's, the
    rest this batch's. Layers that this batch did not reach keep theirs.

    Cost: set-up one forward and the backward passes above, Σ (d_in² + d_out²) memory; a product
    Σ d_in d_out (d_in + d_out); a solve the same, plus a factorisation for every new damping
    (TRACE: Cholesky) or one in all (EXACT: eigenvectors, some ten times dearer).

    Hooks of parameters, modules and tensors are not run. Copies and pickles hold copies of the
    layers and of the parameters, and give the same products.

    Raises ``ValueError`` where too many parameters are left over, exact factors are asked for a
    batch of several dimensions, or ``samples`` lack a generator;
    :class:`natgrad.curvature.NotTwiceDifferentiable` for layers in a reentrant checkpoint.

    Source: Martens & Grosse 2015; Grosse & Martens 2016 (convolutions); George et al. 2018
    (E-KFAC); Eschenhagen et al. 2023 (expand and reduce).

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
        super().__init__(self._slots.size, first.dtype, first.device)
        if samples is not None:
            require_samples_drawn(samples)
            if generator is None:
                raise ValueError(
                    "drawn labels need generator=torch.Generator().manual_seed(...): which ones "
                    "are drawn should be the caller's to repeat"
                )
        chosen = forward or model
        run = Forward(chosen, first.device)
        with run.replayed():
            with recorded_layers(model, self._slots.trained) as recorded:
                distribution = run(data)
            outputs = checked_outputs(distribution, samples)
            graph = Graph([output for output in outputs if output.requires_grad])
            # preserved_buffers: checkpointed modules run again in a backward pass.
            with graph.unhooked(self._slots.trained), preserved_buffers():
                scalar = self._scalar(outputs, graph)
                batch = batch_shape(distribution)
                reached = [layer for layer in recorded if graph.reaches(layer.weight)]
                layers = verified(reached, scalar, batch[0] if batch else 1)
                if sharing is Sharing.REDUCE or corrected:
                    require_samples(layers, batch[0])
                gradients = OutputGradients(distribution, layers, samples, generator)
                blocks = [
                    KroneckerBlock(layer, A, G)
                    for layer, A, G in layer_factors(layers, gradients, sharing)
                ]
                rest = self._rest(chosen, data, graph, layers, gradients)
                self._blocks: list[Block] = [*blocks, *rest]
                earlier = {} if previous is None else previous._by_owners()
                for block in self._blocks:
                    before = earlier.get(tuple(block.owners))
                    if type(before) is type(block):
                        block.blend(before, decay)
                if corrected:
                    correct(blocks, gradients)
                    for block in blocks:
                        before = earlier.get(tuple(block.owners))
                        if isinstance(before, KroneckerBlock):
                            block.blend_moments(before, decay)
            own = {owner for block in self._blocks for owner in block.owners}
            free = set(self._slots.parameters) - own
            self._blocks += [block for block in earlier.values() if free.issuperset(block.owners)]
        self.corrected = corrected
        for layer in recorded:
            layer.calls.clear()  # or the whole graph would stay alive

    def _scalar(self, outputs: tuple[Tensor, ...], graph: Graph) -> Tensor:
        """One number of all outputs, by unequal weights, so that errors of layers cannot cancel."""
        weights = [
            torch.linspace(0.5, 1.5, output.numel()).to(output).view_as(output)
            for output in outputs
        ]
        reached = [p for p in self._slots.trained if graph.reaches(p)]
        if not reached:
            raise self._slots.unreached()

        def layers() -> None:
            pairs = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
            live, along = zip(*pairs, strict=True)
            graph.require_linear(live, reached, along)

        graph.try_once(reached[0], layers)
        with torch.enable_grad():
            scalars = [
                output.reshape(-1) @ weight.reshape(-1)
                for output, weight in zip(outputs, weights, strict=True)
            ]
            return torch.stack(scalars).sum()

    def _rest(
        self,
        forward: Callable[[Any], Distributions],
        data: Any,
        graph: Graph,
        layers: list[Layer],
        gradients: OutputGradients,
    ) -> list[Block]:
        covered = {owner for layer in layers for owner in layer.owners}
        rest = [p for p in self._slots.trained if p not in covered and graph.reaches(p)]
        if not rest:
            return []
        count = sum(parameter.numel() for parameter in rest)
        if count <= MAX_DENSE:
            # From the forward function: its kernels may have to be replaced by differentiable ones.
            return [DenseBlock(rest, Fisher(forward, rest, data=data).to_dense())]
        if not gradients.samples:
            raise ValueError(
                f"{count} parameters are outside Linear, Conv1d, Conv2d (one group) and Embedding "
                "layers, or these use them in ways a factor does not describe (tied weights, a "
                f"frozen weight, dimension 0 not the batch); at most {MAX_DENSE} get a dense "
                "block. Pass samples=1 and a generator for a diagonal one, or parameters=[...] "
                "without them"
            )
        # Scores of drawn labels are independent with mean zero: the square of their sum has the
        # sum of their squares for its expectation, and no per-sample gradient is formed.
        diagonal = torch.zeros(count, dtype=self.dtype, device=self.device)
        for total in gradients.sampled():
            pieces = torch.autograd.grad(total, rest, retain_graph=True, allow_unused=True)
            diagonal += self._slots.vector_of(rest, pieces).square() / gradients.divisor
        return [DiagonalBlock(rest, diagonal)]

    @classmethod
    def restored(
        cls,
        model: nn.Module,
        parameters: Iterable[Tensor],
        blocks: Iterable[tuple[list[Tensor], tuple[Tensor, ...]]],
        *,
        corrected: bool = False,
    ) -> Kronecker:
        """The operator of which ``factors()`` gave these blocks."""
        operator = cls.__new__(cls)
        operator._slots = Slots(parameters)
        first = operator._slots.parameters[0]
        LinearOperator.__init__(operator, operator._slots.size, first.dtype, first.device)
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
        """The parameters of every block and what it is made of, for :meth:`restored`: A and G (and,
        corrected, the eigenvalues) of a layer, one matrix or diagonal for the rest."""
        return [(list(block.owners), block.factors) for block in self._blocks]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters, in the vector's order."""
        return self._slots.parameters

    @property
    def reached(self) -> tuple[Tensor, ...]:
        owned = {owner for block in self._blocks for owner in block.owners}
        return tuple(parameter for parameter in self._slots.parameters if parameter in owned)

    def _by_owners(self) -> dict[tuple[Tensor, ...], Block]:
        return {tuple(block.owners): block for block in self._blocks}

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._blockwise(matrix, lambda block, pieces: block.multiply(pieces))

    def solve(
        self, b: Tensor, *, damping: float = 0.0, split: DampingSplit = DampingSplit.EXACT
    ) -> Tensor:
        """(K + λ I)⁻¹ b for b (n,) or (n, k), λ the ``damping``; or, with ``split`` TRACE, the
        factored form of it, G ⊗ A with √λ / π and π √λ added to the factors.

        What a new damping needs is kept for the next call. Frozen parameters have zero rows, so
        that with λ > 0 the solution there is b / λ. Raises ``ValueError`` for a negative or
        non-finite damping, for λ = 0 where K is singular, for TRACE on a corrected K, which is no
        Kronecker product.
        """
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping must be finite and >= 0, got {damping}")
        if split is DampingSplit.TRACE and self.corrected:
            raise ValueError("a corrected (E-KFAC) matrix has only the EXACT damping")
        matrix = self._as_matrix(b)
        covered = sum(owner.numel() for block in self._blocks for owner in block.owners)
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
        """Every block's action on its rows. Rows of no block are divided by ``rest``, or zero."""
        result = torch.zeros_like(matrix) if not rest else matrix / rest
        for block in self._blocks:
            spans = [self._slots.span(owner) for owner in block.owners]
            pieces = [
                matrix[span].reshape(*owner.shape, matrix.shape[1])
                for span, owner in zip(spans, block.owners, strict=True)
            ]
            for span, piece in zip(spans, act(block, pieces), strict=True):
                result[span] = piece.reshape(-1, matrix.shape[1])
        return result

"""Kronecker factors as a moving average over steps, for KFAC and AdaptiveKFAC."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from natgrad import flat
from natgrad.autodiff.layers import candidates
from natgrad.curvature import DampingSplit, Kronecker, Sharing
from natgrad.curvature.kronecker import NonFiniteFactors
from natgrad.curvature.kronecker.factors import require_samples_drawn
from natgrad.curvature.kronecker.operator import MAX_DENSE
from natgrad.optim.arguments import require_counts, require_seed, require_share
from natgrad.optim.likelihoods import Likelihood, likelihood_of
from natgrad.optim.observed_model import Batch, ObservedModel
from natgrad.optim.optimizer import Parameters, SecondOrderOptimizer

# Names of factors in an optimizer's `state`: a layer's are stored with its weight, those of
# parameters outside layers row by row with each parameter.
LAYER_FACTORS = ("input_factor", "output_factor", "second_moments")
REST = "rest_factor"


def mixed_seed(*numbers: int) -> int:
    """One seed of 32 bits for all the numbers: torch's CPU generator ignores further bits."""
    return zlib.crc32(repr(numbers).encode())


class RunningFactors:
    """K ≈ F of the observed model, computed anew when asked, remembered in ``state``.

    The first refreshes count equally, later ones 1 − ``decay``; a ``fraction`` of each batch is
    used. Factors loaded into ``state`` come back bitwise. Samples and labels are drawn by
    generators seeded by ``seed`` and the number of the refresh: there is nothing else to save, and
    torch's global generators are left alone.
    """

    def __init__(
        self,
        observed: ObservedModel,
        likelihood: Likelihood,
        *,
        decay: float,
        samples: int | None,
        sharing: Sharing,
        corrected: bool,
        seed: int,
        fraction: float = 1.0,
    ) -> None:
        require_share(")", decay=decay)
        require_share("]", fraction=fraction)
        if samples is not None:
            require_samples_drawn(samples)
        self._observed, self._likelihood = observed, likelihood
        self._decay, self._samples, self._sharing = decay, samples, sharing
        self._corrected, self._seed, self._fraction = corrected, seed, fraction
        self._kronecker: Kronecker | None = None

    @property
    def split(self) -> DampingSplit:
        """Where damping is added: exactly if eigenvalues are corrected, else to both factors."""
        return DampingSplit.EXACT if self._corrected else DampingSplit.TRACE

    def forget(self) -> None:
        """Drop the factors at hand; the next step reads them from ``state``."""
        self._kronecker = None

    def at(
        self, state: Any, parameters: list[Tensor], refreshes: int, *, due: bool
    ) -> tuple[Kronecker, int]:
        """K over the parameters for this step, and the number of refreshes by now.

        K is refreshed if that is ``due``, or if the known factors belong to other parameters.
        """
        if self._kronecker is None:
            self._kronecker = self._restored(state, parameters, refreshes)
        if due or self._kronecker is None or not _same(self._kronecker.parameters, parameters):
            refreshes += 1
            self._kronecker = self._refreshed(parameters, refreshes)
            self._store(state, self._kronecker)
        assert self._kronecker is not None
        return self._kronecker, refreshes

    def _refreshed(self, parameters: list[Tensor], count: int) -> Kronecker:
        """K of this step's batches, averaged with the known factors."""
        kronecker = self._kronecker
        batches = self._observed.required_batches()
        old = min(self._decay, 1 - 1 / count)
        for index, batch in enumerate(batches):
            # In the end `old` of the old, and an equal share of each batch.
            before = old + (1 - old) * index / len(batches)
            after = old + (1 - old) * (index + 1) / len(batches)
            generator = torch.Generator(parameters[0].device)
            generator.manual_seed(mixed_seed(self._seed, count, index))
            kronecker = self._of_batch(
                batch, parameters, generator, kronecker, decay=before / after
            )
        assert kronecker is not None
        return kronecker

    def _of_batch(
        self,
        batch: Batch,
        parameters: list[Tensor],
        generator: torch.Generator,
        previous: Kronecker | None,
        *,
        decay: float,
    ) -> Kronecker:
        with self._observed.replayed(batch, self._fraction, generator) as (forward, data):
            return Kronecker(
                self._observed.model,
                data,
                forward=lambda pieces: self._likelihood(forward(pieces)),
                parameters=parameters,
                samples=self._samples,
                sharing=self._sharing,
                corrected=self._corrected,
                generator=generator,
                previous=previous,
                decay=decay,
            )

    def reserve(self, state: Any, parameters: list[Tensor]) -> None:
        """Put zeros in place of the factors to come, as the template of a checkpoint.

        Before the first batch all that is known of them is the modules; a layer that turns out to
        be used in another way has its factors elsewhere, and its checkpoint does not fit.
        """
        layers = candidates(self._observed.model, parameters)
        for layer in layers:
            V = layer.matrix([owner.new_zeros(*owner.shape, 1) for owner in layer.owners])
            d_out, d_in = V.shape[-2:]
            A = V.new_zeros(d_in) if layer.is_embedding else V.new_zeros(d_in, d_in)
            moments = (V.new_zeros(d_out, d_in),) if self._corrected else ()
            factors = A, V.new_zeros(d_out, d_out), *moments
            state[layer.owners[0]].update(zip(LAYER_FACTORS, factors, strict=False))
        covered = {owner for layer in layers for owner in layer.owners}
        rest = [parameter for parameter in parameters if parameter not in covered]
        count = sum(map(flat.size, rest))
        for parameter in rest:
            rows, dtype = flat.size(parameter), flat.real_dtype(parameter)
            shape = (rows, count) if count <= MAX_DENSE else (rows,)
            state[parameter][REST] = parameter.new_zeros(shape, dtype=dtype)

    def _store(self, state: Any, kronecker: Kronecker) -> None:
        for parameter in kronecker.parameters:
            for name in (*LAYER_FACTORS, REST):  # of the template, or of a layer used otherwise
                state[parameter].pop(name, None)
        for owners, factors in kronecker.factors():
            if len(factors) > 1:
                state[owners[0]].update(zip(LAYER_FACTORS, factors, strict=False))
                continue
            rows = torch.split(factors[0], list(map(flat.size, owners)))
            for owner, row in zip(owners, rows, strict=True):
                state[owner][REST] = row

    def _restored(self, state: Any, parameters: list[Tensor], refreshes: int) -> Kronecker | None:
        """K of a loaded ``state``, None if it holds no factors."""
        if not refreshes:  # the zeros of a template
            return None
        blocks: list[tuple[list[Tensor], tuple[Tensor, ...]]] = []
        for layer in candidates(self._observed.model, parameters):
            held = state[layer.owners[0]]
            factors = tuple(held[name] for name in LAYER_FACTORS if name in held)
            if factors:
                blocks.append((list(layer.owners), factors))
        rest = [parameter for parameter in parameters if REST in state[parameter]]
        if rest:
            blocks.append((rest, (torch.cat([state[p][REST] for p in rest]),)))
        if not blocks:
            return None
        return Kronecker.restored(
            self._observed.model, parameters, blocks, corrected=self._corrected
        )

    def __getstate__(self) -> dict[str, Any]:
        # The operator names parameters by identity; it is built anew from `state`.
        return {**self.__dict__, "_kronecker": None}


def _same(known: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether these are the very same tensors in the same order."""
    return len(known) == len(wanted) and all(a is b for a, b in zip(known, wanted, strict=True))


class KroneckerOptimizer(SecondOrderOptimizer):
    """An optimizer of a model with Kronecker factors that are refreshed every few steps.

    Subclasses define ``_compute_step``, which gets the factors from ``_factors_at``. The arguments
    are those of :class:`natgrad.optim.KFAC`; ``defaults`` are the settings of each group.
    """

    _observed: ObservedModel
    counters: ClassVar[dict[str, Any]] = {
        **SecondOrderOptimizer.counters,
        "steps": 0,
        "refreshes": 0,
    }

    def __init__(
        self,
        params: nn.Module | Parameters,
        defaults: dict[str, Any],
        model: nn.Module | None,
        *,
        likelihood: str | Likelihood | None,
        refresh_every: int,
        decay: float,
        samples: int | None,
        sharing: Sharing,
        corrected: bool,
        seed: int,
        fraction: float = 1.0,
    ) -> None:
        name = type(self).__name__
        if model is None and not isinstance(params, nn.Module):
            raise ValueError(
                f"{name} needs the model: {name}(model, ...), or {name}(groups, model=model)"
            )
        require_counts(refresh_every=refresh_every)
        require_seed(seed)
        self._refresh_every, self._likelihood = refresh_every, likelihood_of(likelihood)
        super().__init__(params, defaults, model, self._likelihood)
        self._factors = RunningFactors(
            self._observed,
            self._likelihood,
            decay=decay,
            samples=samples,
            sharing=sharing,
            corrected=corrected,
            seed=seed,
            fraction=fraction,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint, as in torch.optim; the factors and the next step are bitwise the same.

        Parameters
        ----------
        state_dict
            The value of ``state_dict()`` of an optimizer with the same parameter groups.
        """
        super().load_state_dict(state_dict)
        self._factors.forget()

    def _complete_state(self) -> None:
        super()._complete_state()
        if not self._counters["refreshes"]:
            trained = [p for p in self._parameters() if p.requires_grad]
            self._factors.reserve(self.state, trained)

    def _factors_at(self, parameters: list[Tensor]) -> Kronecker | None:
        """K over the parameters for this step; None if a factor is NaN or infinite."""
        counters = self._counters
        due = counters.get("steps", 0) % self._refresh_every == 0
        refreshes = counters.get("refreshes", 0)
        try:
            K, counters["refreshes"] = self._factors.at(self.state, parameters, refreshes, due=due)
        except NonFiniteFactors:
            return None
        return K

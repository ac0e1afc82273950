"""What an optimizer remembers from step to step, where torch.optim keeps it: in ``state``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from natgrad import flat


class StatefulOptimizer(Optimizer):
    """Vectors over the parameters, and counters of the whole optimizer.

    Checkpoints of distributed training ask for more than torch.optim does: a fresh optimizer makes,
    by one step with zero gradients, the template that a checkpoint is read into, and every
    parameter has an entry. So the state is complete after any step: vectors that nothing was
    remembered in are zero, and zero reads as nothing. Counters are the first parameter's.
    """

    counters: ClassVar[dict[str, Any]] = {"nonfinite_steps": 0}
    """Names of the counters, and their values before the first step."""

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _vectors(self) -> tuple[str, ...]:
        """The names of the vectors that are remembered under the present settings."""
        return ()

    def _complete_state(self) -> None:
        """Add the entries that are missing."""
        vectors = self._vectors()
        for parameter in self._parameters():
            held = self.state[parameter]
            held.setdefault("nonfinite_steps", 0)
            for name in vectors:
                if name not in held and parameter.requires_grad:
                    held[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        for name, value in self.counters.items():
            self._counters.setdefault(name, value)

    @property
    def _counters(self) -> dict[str, Any]:
        counters: dict[str, Any] = self.state[self._parameters()[0]]
        return counters

    def _remembered(self, name: str, parameters: list[Tensor]) -> Tensor | None:
        """The vector (n,) that :meth:`_remember` stored, 0 for new parameters; None before it."""
        found = [self.state[parameter].get(name) for parameter in parameters]
        if all(piece is None for piece in found):
            return None
        vector = flat.flatten(
            torch.zeros_like(parameter) if piece is None else piece
            for parameter, piece in zip(parameters, found, strict=True)
        )
        return vector if bool(vector.any()) else None

    def _remember(self, name: str, parameters: list[Tensor], vector: Tensor) -> None:
        for parameter, piece in zip(parameters, flat.unflatten(vector, parameters), strict=True):
            self.state[parameter][name] = piece.clone()

    def _forget(self, name: str, parameters: list[Tensor]) -> None:
        self._remember(name, parameters, torch.zeros_like(flat.flatten(parameters)))

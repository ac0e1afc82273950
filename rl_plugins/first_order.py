"""Steps of a torch optimizer on gradients of our own, and the way back from them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from natgrad.flat import assign, flatten


def ascend(
    objective: Tensor,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    max_gradient_norm: float = float("inf"),
) -> Tensor:
    """One step of the optimizer up the objective; the gradient's norm before clipping, 0-d.

    Nothing is read back from the device. A gradient that is not finite ends up in the parameters:
    take a :class:`Snapshot` before, look at them after the last step, restore.
    """
    gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
    for parameter, piece in zip(parameters, gradients, strict=True):
        parameter.grad = None if piece is None else -piece
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return norm


class Snapshot:
    """Parameters and their optimizers' states, to go back to bit for bit.

    As a context it goes back wherever an exception comes out of it.
    """

    def __init__(self, parameters: Sequence[Tensor], *optimizers: torch.optim.Optimizer) -> None:
        self._parameters, self._optimizers = parameters, optimizers
        self.theta = flatten(parameters)
        self._states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.restore()

    def restore(self) -> None:
        assign(self._parameters, self.theta)
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            optimizer.load_state_dict(state)

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
    _differentiate(-objective, parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    _step(optimizer, parameters)
    return norm


def descend(loss: Tensor, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer down the loss, whatever its gradient's norm."""
    _differentiate(loss, parameters)
    _step(optimizer, parameters)


def _differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    # Not loss.backward(): nothing but these parameters is to get a gradient.
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, piece in zip(parameters, gradients, strict=True):
        # A copy: the engine hands out expanded views, and one tensor for several parameters, which
        # clipping in place would scale twice.
        parameter.grad = None if piece is None else piece.clone()


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


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

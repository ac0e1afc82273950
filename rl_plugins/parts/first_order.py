"""Steps of a torch optimizer along given objectives, and the way back from them."""

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
    """One step of the optimizer up the objective.

    Nothing is read back from the device. A gradient that is not finite ends up in the parameters:
    take a :class:`Snapshot` before, look at them after the last step, restore.

    Parameters
    ----------
    objective
        A scalar.
    parameters
        The tensors that it is differentiated in, all of them the optimizer's.
    optimizer
        Makes the step from their gradients.
    max_gradient_norm
        A longer gradient is scaled down to this norm.

    Returns
    -------
    Tensor
        The gradient's norm before clipping, 0-d.
    """
    _differentiate(-objective, parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    _step(optimizer, parameters)
    return norm


def descend(loss: Tensor, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer down the loss, without clipping.

    Parameters
    ----------
    loss
        A scalar.
    parameters
        The tensors that it is differentiated in, all of them the optimizer's.
    optimizer
        Makes the step from their gradients.
    """
    _differentiate(loss, parameters)
    _step(optimizer, parameters)


def _differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    # Not loss.backward(), which would leave gradients in other parameters too.
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, piece in zip(parameters, gradients, strict=True):
        # A copy: autograd returns expanded views, and one tensor for several parameters, which
        # clipping in place would scale twice.
        parameter.grad = None if piece is None else piece.clone()


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


class Snapshot:
    """Parameters and their optimizers' states, to go back to bit for bit.

    As a context it goes back wherever an exception comes out of it.

    Parameters
    ----------
    parameters
        Tensors that are overwritten in place.
    *optimizers
        The optimizers of these parameters.
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
        """Go back: parameters and states are those of the construction."""
        assign(self._parameters, self.theta)
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            optimizer.load_state_dict(state)

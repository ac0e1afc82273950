"""Parameters of any shapes <-> one flat vector (n,).

Operators, solvers and step rules speak vectors; models speak lists of tensors. This is the only
place where one becomes the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors, in their order and row by row, into a new vector (n,).

    The vector is detached and shares no memory with the tensors. Empty and 0-d tensors count with
    their number of elements.

    Raises ``ValueError`` where there is no tensor, or where dtypes or devices differ; ``TypeError``
    where a tensor is not real floating point.

    >>> flatten([torch.zeros(2, 2), torch.tensor(3.0)])
    tensor([0., 0., 0., 0., 3.])
    """
    pieces = list(tensors)
    check_alike(pieces)
    return torch.cat([piece.detach().reshape(-1) for piece in pieces])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cut a vector (n,) into views shaped like the tensors of ``like``: no copy.

    Raises ``ValueError`` where the vector is not one-dimensional with exactly n elements.

    >>> [piece.shape for piece in unflatten(torch.zeros(5), [torch.zeros(2, 2), torch.zeros(())])]
    [torch.Size([2, 2]), torch.Size([])]
    """
    sizes = [tensor.numel() for tensor in like]
    if vector.ndim != 1 or vector.numel() != sum(sizes):
        raise ValueError(
            f"expected a vector of shape ({sum(sizes)},) for {len(sizes)} tensors, "
            f"got shape {tuple(vector.shape)}"
        )
    pieces = torch.split(vector, sizes)
    return tuple(piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True))


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Write a vector (n,) into the parameters, in place and bit for bit.

    Graphs recorded before the call are stale after it; autograd refuses to use them.

    Raises ``ValueError`` where size, dtype or device of the vector do not match: a silent cast
    would break the promise that a rejected step restores the parameters exactly.
    """
    check_alike(parameters)
    if vector.dtype != parameters[0].dtype or vector.device != parameters[0].device:
        raise ValueError(
            f"the parameters are {parameters[0].dtype} on {parameters[0].device}, the vector is "
            f"{vector.dtype} on {vector.device}; convert the vector with .to(...) first"
        )
    for parameter, piece in zip(parameters, unflatten(vector, parameters), strict=True):
        parameter.copy_(piece)


def gradient(output: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = False) -> Tensor:
    """Gradient (n,) of a scalar; zeros for parameters that are frozen or that it does not use.

    ``.grad`` is neither read nor written. Raises ``ValueError`` where the output is no scalar or
    depends on none of the parameters.
    """
    check_alike(parameters)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if output.numel() != 1 or not output.requires_grad or not trained:
        raise ValueError(
            "expected a scalar that depends on parameters with requires_grad=True, got shape "
            f"{tuple(output.shape)}, requires_grad={output.requires_grad}, "
            f"{len(trained)} of {len(parameters)} parameters trainable; "
            "reduce it with .mean() and compute it with gradients enabled"
        )
    pieces = iter(
        torch.autograd.grad(output, trained, retain_graph=retain_graph, allow_unused=True)
    )
    return flatten(
        [
            torch.zeros_like(parameter) if piece is None else piece
            for parameter in parameters
            for piece in [next(pieces) if parameter.requires_grad else None]
        ]
    )


def check_alike(tensors: Sequence[Tensor]) -> None:
    """Raise unless there is at least one tensor and all are real, of one dtype, on one device."""
    if not tensors:
        raise ValueError("got no tensors; a generator such as model.parameters() is spent by one "
                         "pass: turn it into a list first")  # fmt: skip
    first = tensors[0]
    for index, tensor in enumerate(tensors):
        if not tensor.dtype.is_floating_point:
            raise TypeError(
                f"tensor {index} is {tensor.dtype}; expected real floating point. Keep a real "
                "parameter (..., 2) in place of a complex one, and make it complex where it is "
                "used, by torch.view_as_complex"
            )
        if tensor.layout != torch.strided:
            raise TypeError(
                f"tensor {index} is sparse; expected dense ones. Build an embedding with "
                "sparse=False"
            )
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"tensor {index} is {tensor.dtype} on {tensor.device}, but tensor 0 is "
                f"{first.dtype} on {first.device}; one vector needs one dtype and one device"
            )

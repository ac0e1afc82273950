"""Convert between lists of parameters and one flat vector (n,).

Operators, solvers and step rules take vectors; models hold lists of tensors. Only this module
converts one to the other. Vectors are real: a complex number is two of their elements, its real and
its imaginary part, of which torch's gradients are those of a real function.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["assign", "check_alike", "flatten", "gradient", "unflatten"]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors, in their order and row by row, into a new vector (n,).

    Parameters
    ----------
    tensors
        Floating-point tensors of any shapes, one precision and one device. Empty and 0-d tensors
        count with their number of elements, complex ones with twice that.

    Returns
    -------
    Tensor
        A vector (n,), detached, that shares no memory with the tensors.

    Raises
    ------
    ValueError
        If there is no tensor, or dtypes or devices differ.
    TypeError
        If a tensor is sparse or no floating-point number.

    Examples
    --------
    >>> flatten([torch.zeros(2, 2), torch.tensor(3.0)])
    tensor([0., 0., 0., 0., 3.])
    """
    pieces = list(tensors)
    check_alike(pieces)
    return torch.cat([as_real(piece.detach()).reshape(-1) for piece in pieces])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Split a vector (n,) into pieces shaped like the tensors of ``like``.

    Real pieces are views, without a copy.

    Parameters
    ----------
    vector
        A vector (n,), in the order of :func:`flatten`.
    like
        Tensors whose shapes the pieces take, complex where they are; their values are not read.

    Returns
    -------
    tuple of Tensor
        One piece for each tensor of ``like``.

    Raises
    ------
    ValueError
        If the vector is not one-dimensional with exactly n elements.

    Examples
    --------
    >>> [piece.shape for piece in unflatten(torch.zeros(5), [torch.zeros(2, 2), torch.zeros(())])]
    [torch.Size([2, 2]), torch.Size([])]
    """
    sizes = [size(tensor) for tensor in like]
    if vector.ndim != 1 or vector.numel() != sum(sizes):
        raise ValueError(
            f"expected a vector of shape ({sum(sizes)},) for {len(sizes)} tensors, "
            f"got shape {tuple(vector.shape)}"
        )
    pieces = torch.split(vector, sizes)
    return tuple(as_piece(piece, tensor) for piece, tensor in zip(pieces, like, strict=True))


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Write a vector (n,) into the parameters, in place and bit for bit.

    Parameters
    ----------
    parameters
        The tensors to write to, in the order of :func:`flatten`. Autograd refuses to use graphs
        that were recorded from their old values.
    vector
        The new values (n,), of the parameters' dtype and device.

    Raises
    ------
    ValueError
        If size, dtype or device of the vector do not match. A silent cast would break the promise
        that a rejected step restores the parameters exactly.
    """
    check_alike(parameters)
    if vector.dtype != real_dtype(parameters[0]) or vector.device != parameters[0].device:
        raise ValueError(
            f"the parameters are {parameters[0].dtype} on {parameters[0].device}, the vector is "
            f"{vector.dtype} on {vector.device}; convert the vector with .to(...) first"
        )
    for parameter, piece in zip(parameters, unflatten(vector, parameters), strict=True):
        parameter.copy_(piece)


def gradient(output: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = False) -> Tensor:
    """Compute the gradient of a scalar as one vector (n,), without reading or writing ``.grad``.

    Parameters
    ----------
    output
        A tensor of one element that carries a graph.
    parameters
        The tensors to differentiate in. Frozen and unused ones get zeros.
    retain_graph
        Whether to keep the graph. Set it if ``output`` is differentiated again, or if an operator
        is built from the same forward pass later.

    Returns
    -------
    Tensor
        The gradient (n,), detached, in the order of :func:`flatten`.

    Raises
    ------
    ValueError
        If the output is not a scalar, carries no graph, or all parameters are frozen.
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
    """Raise unless the tensors can be one vector: at least one, of one precision on one device.

    Parameters
    ----------
    tensors
        The tensors to check, such as a model's parameters.

    Raises
    ------
    ValueError
        If there is no tensor, or dtypes or devices differ.
    TypeError
        If a tensor is sparse or no floating-point number.
    """
    if not tensors:
        raise ValueError(
            "got no tensors; a generator such as model.parameters() is spent by one pass: turn it "
            "into a list first"
        )
    first = tensors[0]
    for index, tensor in enumerate(tensors):
        if not (tensor.dtype.is_floating_point or tensor.is_complex()):
            raise TypeError(f"tensor {index} is {tensor.dtype}; expected floating-point numbers")
        if tensor.layout != torch.strided:
            raise TypeError(
                f"tensor {index} is sparse; expected dense ones. Build an embedding with "
                "sparse=False"
            )
        if real_dtype(tensor) != real_dtype(first) or tensor.device != first.device:
            raise ValueError(
                f"tensor {index} is {tensor.dtype} on {tensor.device}, but tensor 0 is "
                f"{first.dtype} on {first.device}; one vector needs one precision and one device"
            )


def size(tensor: Tensor) -> int:
    """Return the number of elements that a parameter takes in a vector."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def real_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of a vector that holds a parameter."""
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def as_real(tensor: Tensor) -> Tensor:
    """Return a tensor with the two parts of complex numbers along a last dimension."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_piece(values: Tensor, like: Tensor, *leading: int) -> Tensor:
    """Return elements of a vector, ``leading`` rows of them, as a parameter's shape and kind."""
    if not like.is_complex():
        return values.reshape((*leading, *like.shape))
    # A copy where the place in the vector is odd: pairs must be aligned in memory.
    pairs = values.reshape((*leading, *like.shape, 2))
    aligned = pairs.storage_offset() % 2 == 0 and pairs.is_contiguous()
    return torch.view_as_complex(pairs if aligned else pairs.contiguous().clone())


class Slots:
    """The parameters of an operator, in the order of its vectors.

    Attributes
    ----------
    parameters
        All parameters.
    trained
        Those with requires_grad.
    size, dtype
        n, the number of elements of a vector, and its dtype.

    Raises
    ------
    ValueError
        If there is no parameter, one is listed twice, or dtypes or devices differ.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = tuple(parameters)
        check_alike(self.parameters)
        if len(set(self.parameters)) != len(self.parameters):
            raise ValueError("a parameter is listed twice; list a tied parameter once")
        self.trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        # Keyed by the tensors, not by id(): in a deep copy of this object the keys are the copies.
        self._spans: dict[Tensor, slice] = {}
        self.dtype = real_dtype(self.parameters[0])
        self.size = 0
        for parameter in self.parameters:
            start, self.size = self.size, self.size + size(parameter)
            self._spans[parameter] = slice(start, self.size)
        self._versions = [parameter._version for parameter in self.parameters]

    def check_unchanged(self) -> None:
        """Raise ``RuntimeError`` if a parameter was written to: curvature belongs to one point."""
        if self._versions != [parameter._version for parameter in self.parameters]:
            raise RuntimeError(
                "the parameters were changed in place after this operator was built; curvature "
                "belongs to one point: build a new operator at the new parameters"
            )

    def span(self, parameter: Tensor) -> slice:
        """Return the place of a parameter in a vector (n,)."""
        return self._spans[parameter]

    def unreached(self) -> ValueError:
        """Build the error for outputs that depend on no parameter."""
        return ValueError(
            f"the outputs depend on none of the {len(self.trained)} parameters with "
            "requires_grad=True; compute them with gradients enabled, from these very parameters "
            "and not from copies"
        )

    def pieces(self, vector: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
        """Split a vector (n,) into the pieces of the ``wanted`` parameters, of their shapes."""
        by_parameter = dict(zip(self.parameters, unflatten(vector, self.parameters), strict=True))
        return [by_parameter[parameter] for parameter in wanted]

    @staticmethod
    def vector_of(owners: Sequence[Tensor], pieces: Sequence[Tensor | None]) -> Tensor:
        """Concatenate ``pieces`` of the parameters ``owners`` to a vector, with zeros for None."""
        return flatten(
            torch.zeros_like(owner) if piece is None else piece
            for owner, piece in zip(owners, pieces, strict=True)
        )

    def vector(self, owners: Sequence[Tensor], pieces: Sequence[Tensor | None]) -> Tensor:
        """Build the vector (n,) with ``pieces`` at the places of ``owners``, zero elsewhere."""
        by_parameter = dict(zip(owners, pieces, strict=True))
        found = [by_parameter.get(parameter) for parameter in self.parameters]
        return self.vector_of(self.parameters, found)

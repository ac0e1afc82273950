"""A caller's operator, matrix or function as a function on torch vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SupportsMatmul(Protocol):
    """Anything with ``A @ v``: this package's operators, torch and NumPy matrices, SciPy's
    operators."""

    def __matmul__(self, vector: Any, /) -> Any: ...


LinearMap = SupportsMatmul | Callable[[Any], Any]


class Multiply:
    """v ↦ A v on torch vectors (n,) and matrices (n, k), without a graph.

    Parameters
    ----------
    with_graph
        The same with the graph that A's own code records.

    Attributes
    ----------
    curved
        Whether a product so far had a graph: A depends on something that requires gradients.
    """

    def __init__(self, with_graph: Callable[[Tensor], Tensor]) -> None:
        self.with_graph = with_graph
        self.curved = False

    def __call__(self, vector: Tensor) -> Tensor:
        product = self.with_graph(vector)
        if product.requires_grad:
            self.curved = True
            product = product.detach()
        return product


def as_multiply(
    operator: LinearMap, like: Tensor, *, numpy_caller: bool, name: str, like_name: str = "b"
) -> Multiply:
    """v ↦ A v of a caller's operator, matrix or function.

    NumPy arrays, and SciPy operators and sparse matrices, are passed NumPy vectors; torch matrices
    and this package's operators torch ones; a plain function gets the kind that the solver's caller
    used, a matrix column by column. Each product is checked for shape and dtype: broadcasting would
    hide a wrong one.

    Parameters
    ----------
    operator
        An operator, matrix or function.
    like
        A tensor of n rows, with the dtype and device of the products.
    numpy_caller
        Whether the solver's caller gave b as a NumPy array.
    name, like_name
        The names of ``operator`` and ``like`` in error messages.

    Raises
    ------
    ValueError, TypeError
        For a wrong shape, dtype or kind of the operator, and, by the function, of a product.
    """
    shape = getattr(operator, "shape", None)
    if shape is not None and tuple(shape) != (len(like), len(like)):
        raise ValueError(
            f"{name} has shape {tuple(shape)}, but {like_name} has {len(like)} elements; "
            f"expected ({len(like)}, {len(like)})"
        )
    if isinstance(operator, Tensor) and operator.dtype != like.dtype:
        raise ValueError(
            f"{name} is {operator.dtype} but {like_name} is {like.dtype}; convert one of them"
        )
    if hasattr(operator, "__matmul__"):
        apply: Callable[[Any], Any] = operator.__matmul__
        is_scipy = type(operator).__module__.split(".")[0] == "scipy"
        # Without `.device` it is not a torch operator: pass it the caller's array type.
        foreign = numpy_caller and not hasattr(operator, "device")
        wants_numpy = isinstance(operator, np.ndarray) or is_scipy or foreign
    elif callable(operator):
        apply, wants_numpy = operator, numpy_caller
    else:
        raise TypeError(
            f"{name} must support `{name} @ v` or be a function v ↦ {name} v, "
            f"got {type(operator).__name__}"
        )

    by_columns = not hasattr(operator, "__matmul__")

    # Two functions: one that calls itself is a reference cycle, and would keep the operator alive
    # until garbage collection.
    def checked(vector: Tensor) -> Tensor:
        product = apply(vector.cpu().numpy() if wants_numpy else vector)
        if not isinstance(product, Tensor):
            if np.iscomplexobj(product):
                raise TypeError(f"{name} is complex; only real symmetric operators are supported")
            product = torch.as_tensor(np.asarray(product), dtype=like.dtype, device=like.device)
        if product.shape != vector.shape or product.dtype != like.dtype:
            raise ValueError(
                f"{name} maps a vector of shape {tuple(vector.shape)} and {like.dtype} to shape "
                f"{tuple(product.shape)} and {product.dtype}; expected the same shape and dtype"
            )
        return product

    def multiply(vector: Tensor) -> Tensor:
        if by_columns and vector.ndim == 2 and vector.shape[1]:
            return torch.stack([checked(column) for column in vector.mT.contiguous()], dim=1)
        return checked(vector)

    return Multiply(multiply)


def as_tensor(vector: Tensor | NDArray[Any], name: str, *, columns: bool) -> Tensor:
    """A caller's vector as a detached torch tensor; NumPy arrays are copied.

    Parameters
    ----------
    vector
        Torch or NumPy (n,), float32 or float64.
    name
        Its name in error messages.
    columns
        Whether it may be a matrix (n, k).

    Raises
    ------
    ValueError, TypeError
        For another shape, dtype or kind.
    """
    if isinstance(vector, np.ndarray):
        # A copy in native byte order: torch takes no negative strides, nor read-only memory.
        native = vector.dtype.newbyteorder("=")
        tensor = torch.from_numpy(np.array(vector, dtype=native, order="C"))
    elif isinstance(vector, Tensor):
        if vector.layout != torch.strided:
            raise TypeError(f"{name} is {vector.layout}; expected a dense tensor: .to_dense()")
        tensor = vector.detach()
    else:
        raise TypeError(f"{name} must be a torch tensor or a NumPy array, got {type(vector)}")
    shapes, wanted = ((1, 2), "(n,) or (n, k)") if columns else ((1,), "(n,)")
    if tensor.ndim not in shapes or tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be a vector {wanted} of float32 or float64, got shape "
            f"{tuple(tensor.shape)} of {tensor.dtype}; half precision cannot carry a recurrence, "
            "convert it first"
        )
    return tensor

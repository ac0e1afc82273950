"""Symmetric matrices (n, n) known by their products, and the algebra of such matrices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from natgrad.curvature.checks import checked_symmetric
from natgrad.curvature.scipy_operators import scipy_product, to_scipy

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


class LinearOperator(ABC):
    """A symmetric (n, n) operator; ``A @ v`` maps (n,) to (n,) and (n, k) to (n, k).

    ``A + B``, ``A - B``, ``-A`` and ``c * A`` are operators too. Subclasses define ``_multiply``.
    Results carry no graph.

    Parameters
    ----------
    size
        n, the number of rows.
    dtype, device
        Those of its vectors, real floating point; also attributes.

    Attributes
    ----------
    shape
        (n, n).
    products
        The number of matrix-vector products since construction; a matrix of k columns counts k.

    Raises
    ------
    TypeError, ValueError
        In ``A @ v``, unless v is a tensor of the operator's size, dtype and device.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (size, size)
        self.dtype = dtype
        self.device = device
        self.products = 0

    @abstractmethod
    def _multiply(self, matrix: Tensor) -> Tensor:
        """Compute A V for a detached V (n, k) of the operator's dtype and device."""

    @property
    def reached(self) -> tuple[Tensor, ...] | None:
        """The parameters that a model's curvature depends on; all others have zero rows.

        None for operators that are not built from parameters. Computed in chunks, it holds the
        parameters that products have met so far.
        """
        return None

    def __matmul__(self, vector: Tensor) -> Tensor:
        matrix = self._as_matrix(vector)
        self.products += matrix.shape[1]
        if not matrix.numel():
            return torch.zeros_like(vector)
        return self._multiply(matrix).view(vector.shape)

    def _as_matrix(self, vector: Tensor) -> Tensor:
        """Return a right-hand operand (n,) or (n, k) as a detached matrix (n, k)."""
        if not isinstance(vector, Tensor):
            raise TypeError(
                f"expected a torch tensor, got {type(vector).__name__}; "
                "use torch.from_numpy(v), or A.to_scipy() @ v for NumPy arrays"
            )
        if vector.ndim not in (1, 2) or vector.shape[0] != self.shape[0]:
            raise ValueError(
                f"an operator of shape {self.shape} multiplies vectors of shape "
                f"({self.shape[0]},) or ({self.shape[0]}, k), got {tuple(vector.shape)}"
            )
        if vector.dtype != self.dtype or vector.device != self.device:
            raise ValueError(
                f"the operator is {self.dtype} on {self.device}, the vector is {vector.dtype} on "
                f"{vector.device}; convert the vector with .to(A.device, A.dtype)"
            )
        vector = vector.detach()
        return vector.unsqueeze(1) if vector.ndim == 1 else vector

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: float) -> LinearOperator:
        return Scaled(self, factor) if isinstance(factor, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + -other if isinstance(other, LinearOperator) else NotImplemented

    def damped(self, damping: float) -> LinearOperator:
        """Return A + λ I, whose product costs one product of A.

        Parameters
        ----------
        damping
            λ >= 0. Raise it if A is singular, or its small eigenvalues are noise.

        Raises
        ------
        ValueError
            If the damping is negative or not finite.
        """
        return Damped(self, damping)

    def to_dense(self) -> Tensor:
        """Return the matrix (n, n). Cost: n products, n² memory."""
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    def diagonal(self) -> Tensor:
        """Return the diagonal (n,). Cost: n products, but only O(n) memory."""
        diagonal = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for index in range(self.shape[0]):
            basis = torch.zeros_like(diagonal)
            basis[index] = 1
            diagonal[index] = (self @ basis)[index]
        return diagonal

    def to_scipy(self) -> ScipyOperator:
        """Return this operator for SciPy, with NumPy vectors of the same precision in and out."""
        return to_scipy(self)

    @staticmethod
    def from_scipy(operator: ScipyOperator) -> LinearOperator:
        """Make an operator on the CPU from a symmetric SciPy ``LinearOperator`` or sparse matrix.

        Parameters
        ----------
        operator
            Square and real; its dtype is kept. You must know it to be symmetric: checking that
            would cost products.

        Raises
        ------
        ValueError, TypeError
            Unless it is square and of real floating point.
        """
        multiply, size, dtype = scipy_product(operator)
        return FunctionOperator(multiply, size, dtype=dtype)

    @staticmethod
    def from_dense(matrix: Tensor | NDArray[Any]) -> LinearOperator:
        """Make a :class:`Dense` operator.

        Parameters
        ----------
        matrix
            A symmetric matrix (n, n), of torch or NumPy; an array is not copied.
        """
        return Dense(torch.as_tensor(matrix))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class Sum(LinearOperator):
    """A + B. Cost: one product of each a product."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if (left.shape, left.dtype, left.device) != (right.shape, right.dtype, right.device):
            raise ValueError(
                f"operators to add must agree, got {left!r} on {left.device} and "
                f"{right!r} on {right.device}"
            )
        super().__init__(left.shape[0], left.dtype, left.device)
        self._left, self._right = left, right

    def _multiply(self, matrix: Tensor) -> Tensor:
        return (self._left @ matrix) + (self._right @ matrix)

    @property
    def reached(self) -> tuple[Tensor, ...] | None:
        left, right = self._left.reached, self._right.reached
        if left is None or right is None:
            return None
        return tuple(dict.fromkeys(left + right))


class Scaled(LinearOperator):
    """c A for a finite number c. Cost: one product of A a product."""

    def __init__(self, operator: LinearOperator, factor: float) -> None:
        if not math.isfinite(factor):
            raise ValueError(f"expected a finite factor, got {factor}")
        super().__init__(operator.shape[0], operator.dtype, operator.device)
        self._operator, self._factor = operator, factor

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._factor * (self._operator @ matrix)

    @property
    def reached(self) -> tuple[Tensor, ...] | None:
        return self._operator.reached


class Damped(LinearOperator):
    """A + λ I for λ >= 0. Cost: one product of A and one vector addition a product."""

    def __init__(self, operator: LinearOperator, damping: float) -> None:
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping must be finite and >= 0, got {damping}")
        super().__init__(operator.shape[0], operator.dtype, operator.device)
        self._operator, self._damping = operator, damping

    def _multiply(self, matrix: Tensor) -> Tensor:
        return torch.add(self._operator @ matrix, matrix, alpha=self._damping)


class Dense(LinearOperator):
    """A symmetric matrix (n, n) as an operator.

    Parameters
    ----------
    matrix
        The matrix (n, n), real floating point; it is not copied. Pass (M + Mᵀ) / 2 if M is not
        symmetric.

    Raises
    ------
    ValueError, TypeError
        Unless the matrix is square, real floating point and symmetric up to rounding.

    Notes
    -----
    Cost: n² operations a product, n² memory (the matrix itself).

    Examples
    --------
    >>> (Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]])) @ torch.tensor([1.0, 1.0])).tolist()
    [3.0, 4.0]
    """

    def __init__(self, matrix: Tensor) -> None:
        matrix = checked_symmetric(matrix)
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._matrix @ matrix


class FunctionOperator(LinearOperator):
    """The operator whose product is a function of the vector.

    Parameters
    ----------
    function
        Maps v (n,) to A v (n,), of the same dtype. You must know A to be symmetric.
    size
        n, the number of rows.
    dtype, device
        Those of v. Set them to those of the tensors that ``function`` uses.

    Raises
    ------
    ValueError
        In a product, if the function changes shape or dtype.

    Examples
    --------
    >>> (FunctionOperator(lambda v: 2 * v, 3) @ torch.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(size, dtype, torch.device(device))
        self._function = function

    def _multiply(self, matrix: Tensor) -> Tensor:
        products = [self._function(column.contiguous()).detach() for column in matrix.T]
        for product in products:
            if product.shape != self.shape[:1] or product.dtype != self.dtype:
                raise ValueError(
                    f"the function returned shape {tuple(product.shape)} of {product.dtype} for "
                    f"({self.shape[0]},) of {self.dtype}; a square operator keeps both"
                )
        return torch.stack(products, dim=1)

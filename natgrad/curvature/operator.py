"""A symmetric matrix (n, n) that is known by its products, and the algebra of such matrices.

``Dense`` and ``FunctionOperator`` are here, since ``from_dense`` and ``from_scipy`` make them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


class LinearOperator(ABC):
    """Symmetric (n, n) operator; ``A @ v`` maps (n,) to (n,) and (n, k) to (n, k).

    Subclasses define ``_multiply``. Results carry no graph. ``products`` counts matrix-vector
    products since construction; a matrix of k columns counts k.

    ``A @ v`` raises ``TypeError`` where v is no tensor and ``ValueError`` where its shape, dtype or
    device differ from the operator's.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (size, size)
        self.dtype = dtype
        self.device = device
        self.products = 0

    @abstractmethod
    def _multiply(self, matrix: Tensor) -> Tensor:
        """A V for a detached V (n, k) of the operator's dtype and device."""

    @property
    def reached(self) -> tuple[Tensor, ...] | None:
        """The parameters that a model's curvature depends on, the others having zero rows; None for
        operators that know of no parameters. In chunks, those that a product has met."""
        return None

    def __matmul__(self, vector: Tensor) -> Tensor:
        matrix = self._as_matrix(vector)
        self.products += matrix.shape[1]
        if not matrix.numel():
            return torch.zeros_like(vector)
        return self._multiply(matrix).view(vector.shape)

    def _as_matrix(self, vector: Tensor) -> Tensor:
        """A right-hand operand as a detached matrix (n, k)."""
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
        """A + damping I, at no further product. Raises ``ValueError`` where damping < 0."""
        return Damped(self, damping)

    def to_dense(self) -> Tensor:
        """The matrix (n, n). Cost: n products, n² memory."""
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    def diagonal(self) -> Tensor:
        """The diagonal (n,). Cost: n products, but only O(n) memory."""
        entries = []
        for index in range(self.shape[0]):
            basis = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
            basis[index] = 1
            entries.append((self @ basis)[index])
        return torch.stack(entries) if entries else torch.empty(0, dtype=self.dtype)

    def to_scipy(self) -> ScipyOperator:
        """The same operator for SciPy: NumPy vectors of the same precision in and out."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def multiply(vector: Any) -> Any:
            # SciPy hands over (n,), (n, 1) and (n, k), in whatever float its caller has.
            if np.iscomplexobj(vector):
                raise TypeError("expected a real vector: the operator is real")
            operand = torch.as_tensor(vector, dtype=self.dtype, device=self.device)
            return (self @ operand).cpu().numpy()

        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return ScipyOperator(
            shape=self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, dtype=numpy_dtype
        )

    @staticmethod
    def from_scipy(operator: ScipyOperator) -> LinearOperator:
        """A symmetric SciPy ``LinearOperator`` or sparse matrix, on the CPU, in its own dtype.

        Symmetry is the caller's promise: checking it would cost products.
        """
        rows, columns = operator.shape
        if rows != columns:
            raise ValueError(f"expected a square operator, got shape {operator.shape}")
        if not np.issubdtype(operator.dtype, np.floating):
            raise TypeError(f"expected a real floating-point operator, got {operator.dtype}")
        dtype = torch.from_numpy(operator.dtype.type([0])).dtype

        def multiply(vector: Tensor) -> Tensor:
            return torch.as_tensor(operator @ vector.numpy(), dtype=dtype)

        return FunctionOperator(multiply, rows, dtype=dtype)

    @staticmethod
    def from_dense(matrix: Tensor | NDArray[Any]) -> LinearOperator:
        """A symmetric matrix (n, n), torch or NumPy, as an operator: see :class:`Dense`."""
        return Dense(torch.as_tensor(matrix))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


class Sum(LinearOperator):
    """A + B: one product of each a product."""

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
    """c A for a finite number c."""

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
    """A + λ I for λ >= 0: one product of A and one vector addition a product."""

    def __init__(self, operator: LinearOperator, damping: float) -> None:
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping must be finite and >= 0, got {damping}")
        super().__init__(operator.shape[0], operator.dtype, operator.device)
        self._operator, self._damping = operator, damping

    def _multiply(self, matrix: Tensor) -> Tensor:
        return torch.add(self._operator @ matrix, matrix, alpha=self._damping)


class Dense(LinearOperator):
    """A symmetric matrix (n, n). Cost: n² a product, n² memory (the matrix itself, not a copy).

    Raises ``ValueError`` where the matrix is not square, or differs from its transpose by more
    than rounding of its own dtype explains.

    >>> (Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]])) @ torch.tensor([1.0, 1.0])).tolist()
    [3.0, 4.0]
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"expected a square matrix (n, n), got shape {tuple(matrix.shape)}")
        if not matrix.dtype.is_floating_point:
            raise TypeError(f"expected a real floating-point matrix, got {matrix.dtype}")
        matrix = matrix.detach()
        # sqrt(eps) lets products such as JᵀJ through, whose two triangles round differently.
        tolerance = torch.finfo(matrix.dtype).eps ** 0.5
        # Entry against largest entry: squares of a norm would under- or overflow at extreme scales.
        largest = matrix.abs().amax() if matrix.numel() else matrix.new_zeros(())
        if bool(((matrix - matrix.mT).abs() > tolerance * largest).any()):
            raise ValueError(
                "expected a symmetric matrix; its antisymmetric part is not rounding. "
                "Pass (M + M.mT) / 2 if the symmetric part is what you mean"
            )
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._matrix @ matrix


class FunctionOperator(LinearOperator):
    """The operator whose product is ``function(v)``, v (n,); symmetry is the caller's promise.

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
        products = torch.zeros_like(matrix)
        for column in range(matrix.shape[1]):
            vector = matrix[:, column].contiguous()
            product = self._function(vector)
            if product.shape != vector.shape or product.dtype != vector.dtype:
                raise ValueError(
                    f"the function returned shape {tuple(product.shape)} of {product.dtype} for a "
                    f"vector of shape {tuple(vector.shape)} of {vector.dtype}; a square operator "
                    "keeps both"
                )
            products[:, column] = product.detach()
        return products

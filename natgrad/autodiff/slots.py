"""The place of each parameter in a vector (n,)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from natgrad.flat import check_alike, flatten, unflatten


class Slots:
    """The parameters of an operator, in the order of its vectors.

    Attributes
    ----------
    parameters
        All parameters.
    trained
        Those with requires_grad.
    size
        n, the number of their elements.

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
        self.size = 0
        for parameter in self.parameters:
            start, self.size = self.size, self.size + parameter.numel()
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

"""An operator that is made from a matrix, as a subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad.testing.cases.system import System
from natgrad.testing.subjects.naming import qualified_name_of

STRUCTURES = ("symmetric", "semidefinite", "diagonal")


@dataclass(frozen=True)
class Operator:
    """A class or function that makes an operator of a matrix.

    Attributes
    ----------
    name
        The name in reports.
    make
        ``make(matrix)`` returns an object whose product ``A @ v``, v (n,) or (n, k), is that of
        the matrix.
    offers
        May hold ``float32`` (a float32 matrix is multiplied in float32) and ``columns`` (v may be
        (n, k)).
    structure
        What the matrix has to be: ``symmetric``, ``semidefinite`` as well, or ``diagonal``.
    """

    name: str
    make: Callable[[Tensor], Any]
    offers: frozenset[str]
    structure: str = "symmetric"

    @classmethod
    def of(
        cls,
        make: Callable[[Tensor], Any],
        traits: Iterable[str] = ("float32", "columns"),
        *,
        structure: str = "symmetric",
        name: str | None = None,
    ) -> Operator:
        """Make a subject of a class or function.

        Parameters
        ----------
        make
            As the attribute; a subject is returned as it is.
        traits
            The ``offers``. Leave out those that the operator lacks.
        structure
            As the attribute.
        name
            The name in reports; None takes that of ``make``.

        Raises
        ------
        ValueError
            If there is no such structure.
        """
        if isinstance(make, Operator):
            return make
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {STRUCTURES}, got {structure!r}")
        return cls(name or qualified_name_of(make), make, frozenset(traits), structure)

    def matrix(self, system: System) -> Tensor:
        """The matrix (n, n) that the operator is made of: a system's A, or its diagonal alone.

        Parameters
        ----------
        system
            The system.
        """
        return system.A.diagonal().diag() if self.structure == "diagonal" else system.A

    def build(self, system: System) -> Any:
        """The operator of a system's matrix, once its shape is checked.

        Parameters
        ----------
        system
            The system.
        """
        A, n = self.make(self.matrix(system).clone()), len(system)
        shape = tuple(getattr(A, "shape", (n, n)))
        assert shape == (n, n), f"A is {shape}, the matrix is {(n, n)}"
        return A

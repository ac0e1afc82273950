"""Anyone's operator that is made from a matrix."""

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
    """``make(matrix)`` gives an object with ``A @ v``, v (n,) or (n, k), that equals the matrix.

    ``structure`` is what the matrix has to be: ``symmetric``, ``semidefinite`` as well, or
    ``diagonal``. ``offers`` names traits: ``float32`` (a matrix of it is kept in it), ``columns``
    (v may be (n, k)).
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
        """Raises ``ValueError`` for a structure that there is not."""
        if isinstance(make, Operator):
            return make
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {STRUCTURES}, got {structure!r}")
        return cls(name or qualified_name_of(make), make, frozenset(traits), structure)

    def matrix(self, system: System) -> Tensor:
        """The system's A, or its diagonal alone."""
        return system.A.diagonal().diag() if self.structure == "diagonal" else system.A

    def build(self, system: System) -> Any:
        A, n = self.make(self.matrix(system).clone()), len(system)
        shape = tuple(getattr(A, "shape", (n, n)))
        assert shape == (n, n), f"A is {shape}, the matrix is {(n, n)}"
        return A

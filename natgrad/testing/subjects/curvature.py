"""Anyone's curvature matrix of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.check import NotApplicable
from natgrad.testing.likelihoods import COMMON, NATURAL
from natgrad.testing.networks import NETWORKS, SPECIAL
from natgrad.testing.strategies import PLAIN, networks
from natgrad.testing.subjects.naming import qualified_name_of
from natgrad.testing.truth import TRUTHS, blocks, fisher

KINDS = (*NETWORKS, *SPECIAL)
Products = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Curvature:
    """``make(case)`` gives an object with ``A @ v``, v (n,) or (n, k), that claims to be ``matrix``
    of a :class:`NetworkCase`: ``fisher``, ``gauss_newton``, ``hessian`` or ``empirical_fisher``.

    ``families`` and ``kinds`` (of networks) are those that it supports. ``offers`` holds the name
    of the matrix; ``exact`` or ``sampled`` (it draws ``case.draws`` labels a sample by
    ``case.draw_seed``); ``semidefinite``; what of a case it heeds besides the model and the data:
    ``sum`` (``reduction``), ``chunks`` (``chunk_size``), ``weights``, ``frozen`` (their rows are
    zero); and ``forward`` (it runs the model itself, under whatever gradient mode), ``fused``
    (kernels without second derivatives), ``random`` (dropout), ``jacobian``: ``jacobian(case)``
    gives v ↦ J v and u ↦ Jᵀ u of the model's outputs, flattened.
    """

    name: str
    make: Callable[[NetworkCase], Any]
    matrix: str
    offers: frozenset[str]
    families: tuple[str, ...] = COMMON
    kinds: tuple[str, ...] = KINDS
    jacobian: Callable[[NetworkCase], tuple[Products, Products]] | None = None

    @classmethod
    def of(
        cls,
        make: Callable[[NetworkCase], Any],
        matrix: str,
        traits: Iterable[str] = (),
        *,
        families: tuple[str, ...] | None = None,
        kinds: tuple[str, ...] = KINDS,
        jacobian: Callable[[NetworkCase], tuple[Products, Products]] | None = None,
        name: str | None = None,
    ) -> Curvature:
        """Exact unless ``sampled``. Raises ``ValueError`` for a matrix that there is not."""
        if isinstance(make, Curvature):
            return make
        if matrix not in TRUTHS:
            raise ValueError(f"matrix must be one of {sorted(TRUTHS)}, got {matrix!r}")
        given = frozenset(traits) | {matrix}
        given |= {"sampled"} & given or {"exact"}
        given |= frozenset() if matrix == "hessian" else {"semidefinite"}
        given |= frozenset() if jacobian is None else {"jacobian"}
        families = families or (NATURAL if matrix == "gauss_newton" else COMMON)
        name = name or qualified_name_of(make)
        return cls(name, make, matrix, given, families, kinds, jacobian)

    def build(self, case: NetworkCase) -> Any:
        A, n = self.make(case), case.n
        shape = tuple(getattr(A, "shape", (n, n)))
        assert shape == (n, n), f"A is {shape}, there are {n} parameters"
        return A

    def dense(self, case: NetworkCase) -> Tensor:
        return as_dense(self.build(case), case)

    def truth(self, case: NetworkCase) -> Tensor:
        return TRUTHS[self.matrix](case)


@dataclass(frozen=True)
class Kronecker:
    """``make(case)`` gives an approximation of the Fisher matrix by a Kronecker product a layer.

    ``offers``: ``exact`` (expectations over labels, not draws) or ``sampled`` (``case.draws``
    labels a sample by ``case.draw_seed``), ``corrected`` (eigenvalues are second moments: E-KFAC),
    ``forward`` (it runs the model itself, under whatever gradient mode), ``mixed`` (it copes with
    layers that have no such product), ``solve``: ``solve(A, b, damping)`` is (A + damping I)⁻¹ b.
    """

    name: str
    make: Callable[[NetworkCase], Any]
    offers: frozenset[str]
    families: tuple[str, ...] = COMMON
    kinds: tuple[str, ...] = KINDS
    solve: Callable[[Any, Tensor, float], Tensor] | None = None

    @classmethod
    def of(
        cls,
        make: Callable[[NetworkCase], Any],
        traits: Iterable[str] = (),
        *,
        families: tuple[str, ...] = COMMON,
        kinds: tuple[str, ...] = KINDS,
        solve: Callable[[Any, Tensor, float], Tensor] | None = None,
        name: str | None = None,
    ) -> Kronecker:
        """Exact unless ``sampled``."""
        if isinstance(make, Kronecker):
            return make
        given = frozenset(traits)
        given |= {"sampled"} & given or {"exact"}
        given |= frozenset() if solve is None else {"solve"}
        name = name or qualified_name_of(make)
        return cls(name, make, given, families, kinds, solve)

    def dense(self, case: NetworkCase) -> Tensor:
        return as_dense(self.make(case), case)

    def truth(self, case: NetworkCase) -> Tensor:
        """The blocks of the Fisher matrix that belong to the layers."""
        return blocks(case, fisher(case))


def suited(
    kinds: tuple[str, ...] = PLAIN,
    families: tuple[str, ...] | None = None,
    **given: Any,
) -> Callable[[Curvature | Kronecker], st.SearchStrategy[NetworkCase]]:
    """Cases of the families, in chunks where a subject supports that: a function of the subject."""

    def of(subject: Curvature | Kronecker) -> st.SearchStrategy[NetworkCase]:
        wanted = tuple(
            family for family in subject.families if families is None or family in families
        )
        made = tuple(kind for kind in kinds if kind in subject.kinds)
        if not wanted or not made:
            raise NotApplicable(f"{subject.name} supports none of {families or kinds}")
        return networks(made, wanted, chunks="chunks" in subject.offers, **given)

    return of


def as_dense(A: Any, case: NetworkCase) -> Tensor:
    """The matrix of an operator: one product with each unit vector."""
    dense: Tensor = A @ torch.eye(case.n, dtype=case.dtype)
    return dense.detach()

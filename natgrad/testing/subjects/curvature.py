"""A curvature matrix of a model, whole or in Kronecker factors, as a subject."""

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
    """A function that makes a curvature operator of a network and its data.

    Attributes
    ----------
    name
        The name in reports.
    make
        ``make(case)`` returns an object with ``A @ v``, v (n,) or (n, k), for a
        :class:`NetworkCase`.
    matrix
        The matrix that it claims to be: ``fisher``, ``gauss_newton``, ``hessian`` or
        ``empirical_fisher``.
    offers
        The name of the matrix; ``exact`` or ``sampled`` (it draws ``case.draws`` labels a sample
        by ``case.draw_seed``); ``semidefinite``. The fields of a case that it heeds besides the
        model and the data: ``sum`` (``reduction``), ``chunks`` (``chunk_size``), ``weights``,
        ``frozen`` (rows of frozen parameters are zero). Then ``forward`` (it runs the model
        itself, in any gradient mode), ``fused`` (it copes with kernels that have no second
        derivative), ``random`` (with dropout) and ``jacobian``.
    families
        The families of :mod:`natgrad.testing.likelihoods` that it supports.
    kinds
        The kinds of networks, of :mod:`natgrad.testing.networks`, that it supports.
    jacobian
        ``jacobian(case)`` returns v ↦ J v and u ↦ Jᵀ u of the model's outputs, flattened; None
        where there are no such products.
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
        """Make a subject of a function.

        Parameters
        ----------
        make, matrix, jacobian, kinds
            As the attributes; a subject given as ``make`` is returned as it is.
        traits
            The ``offers`` besides the matrix's name, ``semidefinite`` and ``jacobian``; ``exact``
            unless ``sampled`` is among them.
        families
            As the attribute; None takes the common ones, and for ``gauss_newton`` those in natural
            parameters.
        name
            The name in reports; None takes that of ``make``.

        Raises
        ------
        ValueError
            If there is no such matrix.
        """
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
        """The operator of a case, once its shape is checked.

        Parameters
        ----------
        case
            The network and its data.
        """
        A, n = self.make(case), case.n
        shape = tuple(getattr(A, "shape", (n, n)))
        assert shape == (n, n), f"A is {shape}, there are {n} parameters"
        return A

    def dense(self, case: NetworkCase) -> Tensor:
        """The operator's matrix (n, n).

        Parameters
        ----------
        case
            The network and its data.
        """
        return as_dense(self.build(case), case)

    def truth(self, case: NetworkCase) -> Tensor:
        """The matrix (n, n) by its definition.

        Parameters
        ----------
        case
            The network and its data.
        """
        return TRUTHS[self.matrix](case)


@dataclass(frozen=True)
class Kronecker:
    """A function that approximates the Fisher matrix by one Kronecker product a layer.

    Attributes
    ----------
    name
        The name in reports.
    make
        ``make(case)`` returns an object with ``A @ v``, v (n,) or (n, k), for a
        :class:`NetworkCase`.
    offers
        ``exact`` (expectations over labels) or ``sampled`` (``case.draws`` labels a sample by
        ``case.draw_seed``), ``corrected`` (eigenvalues are second moments: E-KFAC), ``forward`` (it
        runs the model itself, in any gradient mode), ``mixed`` (it copes with layers that have no
        such product) and ``solve``.
    families
        The families of :mod:`natgrad.testing.likelihoods` that it supports.
    kinds
        The kinds of networks, of :mod:`natgrad.testing.networks`, that it supports.
    solve
        ``solve(A, b, damping)`` returns (A + damping I)⁻¹ b; None where there is no such solver.
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
        """Make a subject of a function.

        Parameters
        ----------
        make, families, kinds, solve
            As the attributes; a subject given as ``make`` is returned as it is.
        traits
            The ``offers`` besides ``solve``; ``exact`` unless ``sampled`` is among them.
        name
            The name in reports; None takes that of ``make``.
        """
        if isinstance(make, Kronecker):
            return make
        given = frozenset(traits)
        given |= {"sampled"} & given or {"exact"}
        given |= frozenset() if solve is None else {"solve"}
        name = name or qualified_name_of(make)
        return cls(name, make, given, families, kinds, solve)

    def dense(self, case: NetworkCase) -> Tensor:
        """The operator's matrix (n, n).

        Parameters
        ----------
        case
            The network and its data.
        """
        return as_dense(self.make(case), case)

    def truth(self, case: NetworkCase) -> Tensor:
        """The Fisher matrix (n, n) by its definition, zero outside the layers' blocks.

        Parameters
        ----------
        case
            The network and its data.
        """
        return blocks(case, fisher(case))


def suited(
    kinds: tuple[str, ...] = PLAIN,
    families: tuple[str, ...] | None = None,
    **given: Any,
) -> Callable[[Curvature | Kronecker], st.SearchStrategy[NetworkCase]]:
    """A function of a subject, whose strategy draws the cases that the subject supports.

    Parameters
    ----------
    kinds
        The kinds of networks to draw from.
    families
        The families to draw from; None takes all that the subject supports.
    **given
        Other arguments of :func:`natgrad.testing.strategies.networks`.

    Returns
    -------
    callable
        Raises ``NotApplicable`` for a subject that supports none of the kinds or families.
    """

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
    """The matrix (n, n) of an operator, by a product with the identity.

    Parameters
    ----------
    A
        The operator, with ``A @ v``.
    case
        The network that it belongs to, which gives n and the dtype.
    """
    dense: Tensor = A @ torch.eye(case.n, dtype=case.dtype)
    return dense.detach()

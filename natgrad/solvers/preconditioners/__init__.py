"""Approximate inverses that make ``cg``, ``minres`` and ``steihaug`` take fewer products."""

from natgrad.solvers.preconditioners.jacobi import jacobi
from natgrad.solvers.preconditioners.kronecker import kronecker
from natgrad.solvers.preconditioners.nystrom import nystrom
from natgrad.solvers.preconditioners.preconditioner import Preconditioner

__all__ = ["Preconditioner", "jacobi", "kronecker", "nystrom"]

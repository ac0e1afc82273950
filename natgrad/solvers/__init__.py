"""Which way? Solvers of A s = b that know A only by its products, and tell how well they did."""

from natgrad.solvers.cg import cg
from natgrad.solvers.solution import Solution, Status

__all__ = ["Solution", "Status", "cg"]

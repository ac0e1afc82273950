"""Which way? Solvers of A s = b that need only products with A, and verify their answers."""

from natgrad.solvers import preconditioners
from natgrad.solvers.cg import cg
from natgrad.solvers.cholesky import cholesky
from natgrad.solvers.krylov import Krylov
from natgrad.solvers.lanczos import lanczos
from natgrad.solvers.least_squares import LeastSquares, least_squares
from natgrad.solvers.minres import minres
from natgrad.solvers.sample_space import SampleSpace, sample_space
from natgrad.solvers.solution import Iterate, Solution, Status
from natgrad.solvers.steihaug import SteihaugPath, steihaug
from natgrad.solvers.stopping import Stop, model_decrease, relative_progress

__all__ = [
    "Iterate",
    "Krylov",
    "LeastSquares",
    "SampleSpace",
    "Solution",
    "Status",
    "SteihaugPath",
    "Stop",
    "cg",
    "cholesky",
    "lanczos",
    "least_squares",
    "minres",
    "model_decrease",
    "preconditioners",
    "relative_progress",
    "sample_space",
    "steihaug",
]

"""Checks of mathematical properties for any solver, operator, line search or optimizer.

Hypothesis searches for a case where a property fails, and shrinks it to a few numbers:

>>> import torch
>>> from natgrad.testing import check_solver
>>> def solve(A, b, *, rtol, max_iterations=None):  # conjugate gradients with an absolute tolerance
...     x, r = torch.zeros_like(b), b
...     p = r
...     for _ in range(max_iterations or 10 * len(b)):
...         if r @ r < 1e-10:
...             break
...         Ap = A @ p
...         step = (r @ r) / (p @ Ap)
...         x, r, old = x + step * p, r - step * Ap, r
...         p = r + (r @ r) / (old @ old) * p
...     return x
>>> check_solver(solve, examples=10)  # doctest: +IGNORE_EXCEPTION_DETAIL
Traceback (most recent call last):
    ...
natgrad.testing.conformance.ChecksFailed: solve: 5 checks failed

On the command line: ``python -m natgrad.testing scipy.sparse.linalg:cg --kind solver``. It needs
the extra ``testing``.
"""

from natgrad.testing.adapters import subject
from natgrad.testing.check import Check, CheckFailed, Kind, NotApplicable, Outcome, Verdict
from natgrad.testing.conformance import (
    ChecksFailed,
    check_advantages,
    check_curvature,
    check_damped_least_squares,
    check_kronecker,
    check_line_search,
    check_minimiser,
    check_operator,
    check_optimizer,
    check_solver,
    check_step_size,
    check_trust_region_solver,
    checks_for,
    enforce,
    examine,
    parametrize_with_checks,
)
from natgrad.testing.subjects.solver import Answer

__all__ = [
    "Answer",
    "Check",
    "CheckFailed",
    "ChecksFailed",
    "Kind",
    "NotApplicable",
    "Outcome",
    "Verdict",
    "check_advantages",
    "check_curvature",
    "check_damped_least_squares",
    "check_kronecker",
    "check_line_search",
    "check_minimiser",
    "check_operator",
    "check_optimizer",
    "check_solver",
    "check_step_size",
    "check_trust_region_solver",
    "checks_for",
    "enforce",
    "examine",
    "parametrize_with_checks",
    "subject",
]

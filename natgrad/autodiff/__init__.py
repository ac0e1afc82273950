"""Jacobian products from autograd graphs, hooks, layers, and forward passes without side effects.

``curvature`` builds on this package; nothing here imports metrics, solvers or optimizers.
"""

from natgrad.autodiff.differentiation import NotTwiceDifferentiable, twice_differentiable

__all__ = ["NotTwiceDifferentiable", "twice_differentiable"]

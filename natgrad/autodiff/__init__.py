"""How products come out of a graph: Jacobians, hooks, layers, passes without side effects.

The ground floor under ``curvature``: nothing here knows what a metric, a solver or an optimizer is.
"""

from natgrad.autodiff.differentiation import NotTwiceDifferentiable, twice_differentiable

__all__ = ["NotTwiceDifferentiable", "twice_differentiable"]

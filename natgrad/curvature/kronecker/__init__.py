"""Kronecker-factored curvature of a network's layers: K-FAC and E-KFAC."""

from natgrad.curvature.kronecker.blocks import DampingSplit, NonFiniteFactors
from natgrad.curvature.kronecker.factors import Sharing
from natgrad.curvature.kronecker.operator import Kronecker

__all__ = ["DampingSplit", "Kronecker", "NonFiniteFactors", "Sharing"]

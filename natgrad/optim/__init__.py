"""Optimizers that drop in for Adam: curvature, solver and step rule as torch.optim has them."""

from natgrad.optim.adaptive_kfac import AdaptiveKFAC
from natgrad.optim.hessian_free import HessianFree
from natgrad.optim.kfac import KFAC
from natgrad.optim.levenberg_marquardt import LevenbergMarquardt
from natgrad.optim.natural_gradient import NaturalGradient
from natgrad.optim.nonlinear_cg import NonlinearCG
from natgrad.optim.report import NonFiniteError, StepReport, StepStatus
from natgrad.optim.trust_region_newton import TrustRegionNewton

__all__ = [
    "KFAC",
    "AdaptiveKFAC",
    "HessianFree",
    "LevenbergMarquardt",
    "NaturalGradient",
    "NonFiniteError",
    "NonlinearCG",
    "StepReport",
    "StepStatus",
    "TrustRegionNewton",
]

"""Optimizers that drop in for Adam: curvature, solver and step rule as torch.optim has them."""

from typing import Any

from natgrad.optim import report
from natgrad.optim.adaptive_kfac import AdaptiveKFAC
from natgrad.optim.hessian_free import HessianFree
from natgrad.optim.kfac import KFAC
from natgrad.optim.levenberg_marquardt import LevenbergMarquardt
from natgrad.optim.natural_gradient import NaturalGradient
from natgrad.optim.nonlinear_cg import NonlinearCG
from natgrad.optim.report import NonFiniteError, OptimizerReport, OptimizerStatus
from natgrad.optim.trust_region_newton import TrustRegionNewton

__all__ = [
    "KFAC",
    "AdaptiveKFAC",
    "HessianFree",
    "LevenbergMarquardt",
    "NaturalGradient",
    "NonFiniteError",
    "NonlinearCG",
    "OptimizerReport",
    "OptimizerStatus",
    "TrustRegionNewton",
]

_FORMER_NAMES = {"StepReport": "OptimizerReport", "StepStatus": "OptimizerStatus"}


def __getattr__(name: str) -> Any:
    # Code written for the first edition imports these; rl_plugins has a StepReport of its own.
    if name in _FORMER_NAMES:
        return getattr(report, _FORMER_NAMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

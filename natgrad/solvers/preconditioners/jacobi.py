"""The diagonal as a preconditioner."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.solvers.preconditioners.preconditioner import Preconditioner


def jacobi(diagonal: Tensor, *, damping: float = 0.0, exponent: float = 1.0) -> Preconditioner:
    """v ↦ (d + λ)^−ξ v entry by entry, for a diagonal d, damping λ and exponent ξ.

    Parameters
    ----------
    diagonal
        d (n,) >= 0: A's diagonal (``A.diagonal()``, n products), an estimate, or squared gradients.
    damping
        λ >= 0, in A's units: that of the system to be solved.
    exponent
        ξ in (0, 1]. Below 1 it tempers an estimate: Martens takes ¾.

    Raises
    ------
    ValueError
        Where an entry of d + λ is not positive and finite, or a setting is out of range.

    Notes
    -----
    Cost: n operations a product.

    Source: Martens, "Deep learning via Hessian-free optimization", 2010, section 4.7.

    Examples
    --------
    >>> (jacobi(torch.tensor([2.0, 4.0])) @ torch.ones(2)).tolist()
    [0.5, 0.25]
    """
    if not (math.isfinite(damping) and damping >= 0 and 0 < exponent <= 1):
        raise ValueError(
            "expected a finite damping >= 0 and an exponent in (0, 1], got "
            f"damping={damping}, exponent={exponent}"
        )
    if diagonal.ndim != 1:
        raise ValueError(f"expected a diagonal (n,), got shape {tuple(diagonal.shape)}")
    weights = (diagonal.detach() + damping).pow(-exponent)
    if not bool(((weights > 0) & torch.isfinite(weights)).all()):
        raise ValueError(
            "the diagonal plus damping must be positive and finite in every entry, the lowest is "
            f"{float(diagonal.min()) + damping}; add damping"
        )
    return Preconditioner(lambda v: weights * v, len(weights), weights.device)

"""How good is a state, and an action in it: V with two ways to fit it, and Q."""

from rl_plugins.critics.action_value import ActionValue
from rl_plugins.critics.critic import (
    AdamRegression,
    Critic,
    CriticFit,
    GaussNewtonRegression,
    explained_variance,
)

__all__ = [
    "ActionValue",
    "AdamRegression",
    "Critic",
    "CriticFit",
    "GaussNewtonRegression",
    "explained_variance",
]

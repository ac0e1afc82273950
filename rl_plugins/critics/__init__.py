"""How good is a state: the critic, and two ways to fit it."""

from rl_plugins.critics.adam import AdamRegression
from rl_plugins.critics.critic import Critic, Regression, explained_variance
from rl_plugins.critics.gauss_newton import GaussNewtonRegression

__all__ = [
    "AdamRegression",
    "Critic",
    "GaussNewtonRegression",
    "Regression",
    "explained_variance",
]

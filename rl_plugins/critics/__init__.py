"""How good is a state, and an action in it: V with two ways to fit it, and Q."""

from rl_plugins.critics.action_value import ActionValue
from rl_plugins.critics.adam import AdamRegression
from rl_plugins.critics.critic import Critic, Regression, explained_variance
from rl_plugins.critics.gauss_newton import GaussNewtonRegression

__all__ = [
    "ActionValue",
    "AdamRegression",
    "Critic",
    "GaussNewtonRegression",
    "Regression",
    "explained_variance",
]

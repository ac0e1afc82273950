"""Where experience comes from."""

from rl_plugins.data.environments import make_environments
from rl_plugins.data.rollouts import Rollout, RolloutCollector

__all__ = ["Rollout", "RolloutCollector", "make_environments"]

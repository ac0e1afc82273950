"""Where experience comes from: rollouts and replay.

Modules that step Gymnasium's environments (``environments``, ``autoreset``, ``collector``) are
imported by their own names, so that an algorithm that is fed by hand needs no Gymnasium.
"""

from rl_plugins.data.replay import ReplayBuffer, Transitions
from rl_plugins.data.rollout import LearningBatch, Rollout, gae, standardise

__all__ = ["LearningBatch", "ReplayBuffer", "Rollout", "Transitions", "gae", "standardise"]

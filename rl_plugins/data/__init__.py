"""Where experience comes from.

The rollout and the replay buffer are imported from here; what steps Gymnasium's environments
(``environments``, ``autoreset``, ``collector``) is imported from its own module, so that an
algorithm that is fed by hand needs no Gymnasium.
"""

from rl_plugins.data.replay import ReplayBuffer, Transitions
from rl_plugins.data.rollout import Rollout

__all__ = ["ReplayBuffer", "Rollout", "Transitions"]

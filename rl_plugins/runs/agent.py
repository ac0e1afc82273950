"""A trained policy in one's own program: observation in, action out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optree
import torch
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from torch import nn

from rl_plugins.data.autoreset import tensors
from rl_plugins.data.masks import flat_mask
from rl_plugins.errors import UsageError
from rl_plugins.policies.spaces import ACTION_MASK
from rl_plugins.runs.export import export_policy

if TYPE_CHECKING:
    from rl_plugins.plugin import Plugin
    from rl_plugins.policies import Behaviour

MASKED = {"observation", ACTION_MASK}


class Agent:
    """What training leaves: a policy that acts, without the task it was trained on.

    Parameters
    ----------
    plugin
        The trained algorithm.
    observation_space, action_space
        Those of one environment, as the policy was trained.

    Examples
    --------
    An episode of one's own loop::

        agent = rl_plugins.load("runs/mine")
        agent.reset()
        observation, info = env.reset()
        while not done:
            action = agent.act(observation)
            observation, reward, terminated, truncated, info = env.step(action)
            done = terminated or truncated
    """

    def __init__(
        self, plugin: Plugin, observation_space: Space[Any], action_space: Space[Any]
    ) -> None:
        self._plugin = plugin
        self.observation_space, self.action_space = observation_space, action_space
        self._behaviours: dict[bool, Behaviour] = {}
        self._count = 1
        self._generator = torch.Generator().manual_seed(0)
        self._masked = (
            isinstance(observation_space, spaces.Dict) and observation_space.keys() == MASKED
        )

    @property
    def policy(self) -> nn.Module:
        """The network: a batch of observations, as tensors -> a distribution, or actions."""
        found: nn.Module = getattr(self._plugin, "policy")  # noqa: B009 (no part of the protocol)
        return found

    def __call__(self, observations: Any) -> Any:
        """The network's output for a batch.

        Parameters
        ----------
        observations
            (N, …) tensors, in the structure of the space.
        """
        return self.policy(observations)

    def __repr__(self) -> str:
        algorithm = type(self._plugin).__name__
        return f"Agent({algorithm}, {self.observation_space} -> {self.action_space})"

    def reset(self) -> None:
        """Forget the episode so far: call it where an episode begins. Only a policy with a memory,
        or with noise that changes slowly, has anything to forget."""
        self._behaviours.clear()

    def act(
        self,
        observation: Any,
        *,
        action_mask: Any = None,
        explore: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The action for an observation, in the task's own units.

        Parameters
        ----------
        observation
            As the environment returns it, or N of them stacked, for N actions.
        action_mask
            ``info["action_mask"]`` of a task that hands one out there; None: all is allowed.
        explore
            Whether to draw the action, as in training; False: the best one, the mode.
        generator
            Draws; None: the agent's own, seeded by 0.

        Raises
        ------
        UsageError
            For an observation of another shape than the policy was trained on.
        """
        observation = self._with_mask(observation, action_mask)
        stacked, count, single = self._stacked(observation)
        if count != self._count:
            self.reset()
            self._count = count
        behaviour = self._behaviours.get(explore)
        if behaviour is None:
            behaviour = self._plugin.behaviour(count, explore=explore)
            self._behaviours[explore] = behaviour
        with torch.inference_mode():
            drawn = behaviour.act(tensors(stacked), generator or self._generator)
        actions = behaviour.to_environment(drawn)
        if not single:
            return actions
        return next(iter(iterate(batch_space(self.action_space, 1), actions)))

    def export(self, out: Path | str) -> list[str]:
        """Write the policy as one ONNX file: see :func:`rl_plugins.runs.export.export_policy`.

        Parameters
        ----------
        out
            The file.

        Returns
        -------
        list
            The names of its inputs.
        """
        to_environment = self._plugin.behaviour(1, explore=False).to_environment
        policy = getattr(self._plugin, "policy", None)
        return export_policy(policy, to_environment, self.observation_space, Path(out))

    def _with_mask(self, observation: Any, mask: Any) -> Any:
        if not self._masked or (isinstance(observation, dict) and observation.keys() == MASKED):
            return observation
        assert isinstance(self.observation_space, spaces.Dict)
        if mask is None:
            mask = np.ones(self.observation_space[ACTION_MASK].shape or (), dtype=np.int8)
        return {"observation": observation, ACTION_MASK: flat_mask(mask)}

    def _stacked(self, observation: Any) -> tuple[Any, int, bool]:
        """Observations (N, …), N, and whether there was one alone."""
        space = self.observation_space
        one: Any = create_empty_array(space, 1)
        try:
            found = optree.tree_map(lambda like, given: np.asarray(given), one, observation)
            pairs = list(zip(optree.tree_leaves(one), optree.tree_leaves(found), strict=True))
            if all(given.shape == like.shape[1:] for like, given in pairs):
                return concatenate(space, [observation], one), 1, True
            if all(given.shape[1:] == like.shape[1:] and given.ndim for like, given in pairs):
                return found, len(pairs[0][1]), False
        except (TypeError, ValueError) as error:
            raise UsageError(f"expected an observation of {space}: {error}") from error
        shapes = [given.shape for _, given in pairs]
        raise UsageError(f"expected an observation of {space}, or several, got shapes {shapes}")

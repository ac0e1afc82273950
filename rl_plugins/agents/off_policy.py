"""The agent of the off-policy family: a step, and the replay buffer that feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from rl_plugins.agents.experience import Experience, OffPolicyConfig
from rl_plugins.critics import ActionValue
from rl_plugins.data import Rollout
from rl_plugins.ddpg import DDPG
from rl_plugins.imports import imported
from rl_plugins.parts.actor_step import DeterministicGradientSettings
from rl_plugins.parts.transition_step import TransitionStep
from rl_plugins.policies import (
    POLICY_OUTPUT_GAIN,
    Behaviour,
    DeterministicPolicy,
    Exploring,
    feature_network,
)
from rl_plugins.reports import OffPolicyReport
from rl_plugins.settings import part_of
from rl_plugins.td3 import TD3, TD3Settings

if TYPE_CHECKING:
    from gymnasium import Space


class OffPolicyAgent:
    """A policy that acts with noise, stores transitions, and learns from them by an
    ``algorithm``.

    Parameters
    ----------
    algorithm
        The step, with the policy and the critics that it moves.
    experience
        The replay buffer, and how many gradient steps are due.
    config
        The settings that both were made from.
    """

    Algorithm: ClassVar[type[TransitionStep[Any]]]
    Config: ClassVar[type[OffPolicyConfig]]

    def __init__(
        self, algorithm: TransitionStep[Any], experience: Experience, config: OffPolicyConfig
    ) -> None:
        self.algorithm, self.experience, self.config = algorithm, experience, config
        self.policy = algorithm.policy

    @classmethod
    def build(
        cls,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: OffPolicyConfig,
        generator: torch.Generator,
    ) -> OffPolicyAgent:
        """The agent for a task's spaces, untrained.

        Parameters
        ----------
        observation_space, action_space
            The spaces of one environment.
        config
            All settings, those of the algorithm included.
        generator
            Source of all randomness; the caller saves it.

        Raises
        ------
        UsageError
            For an action space that is no Box with bounds, and for unsupported observations.
        """
        # Imported here: steps from one's own transitions need no Gymnasium.
        from rl_plugins.policies.spaces import (
            action_map,
            bounded_dimensions,
            observation_features,
        )

        dimensions = bounded_dimensions(action_space)
        features = observation_features(
            observation_space, normalise=False, reading=config.observations
        )
        network: Any = partial(
            feature_network,
            images=features.images,
            hidden_sizes=config.hidden_sizes,
            generator=generator,
            activation=nn.ReLU,
            make_body=imported(config.body) if config.body else None,
        )
        actor = network(features.width, outputs=dimensions, output_gain=POLICY_OUTPUT_GAIN)
        policy = DeterministicPolicy(features, actor)
        inputs = features.width + dimensions
        critics = [
            ActionValue(features, network(inputs, outputs=1, output_gain=1.0))
            for _ in range(cls.Algorithm.critic_count)
        ]
        settings = part_of(config, cls.Algorithm.Settings)
        algorithm = cls.Algorithm(policy, *critics, generator=generator, **settings)
        return cls(algorithm, Experience(config, action_map(action_space)), config)

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        """How the policy acts.

        Parameters
        ----------
        environments
            Their number.
        explore
            μ(s) with noise, or uniformly while the replay buffer fills; False: μ(s).
        """
        return Exploring(
            self.policy,
            self.experience.to_environment,
            self.experience.noise() if explore else None,
            self.experience.is_warming_up,
        )

    def update(self, batch: Rollout) -> OffPolicyReport:
        """Store the rollout, then take the gradient steps that are due.

        Parameters
        ----------
        batch
            Collected with any policy.
        """
        return self.algorithm.learn(self.experience.draw(batch, self.algorithm.generator))

    def state_dict(self) -> dict[str, Any]:
        """All state but the generator's, which its owner saves."""
        experience = self.experience
        replay = {"seen": experience.seen, "owed": experience.owed}
        return {**self.algorithm.state_dict(), **replay, "replay": experience.buffer.state_dict()}

    def start_from(self, state: dict[str, Any]) -> None:
        """Take the networks and the optimizers of another run, and none of its transitions.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """
        self.algorithm.load_state_dict(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """
        self.algorithm.load_state_dict(state)
        self.experience.seen, self.experience.owed = state["seen"], state["owed"]
        self.experience.buffer.load_state_dict(state["replay"])


@dataclass(frozen=True)
class DDPGConfig(DeterministicGradientSettings, OffPolicyConfig):
    """Settings of DDPG and of the networks and the replay buffer that the training loop builds."""


@dataclass(frozen=True)
class TD3Config(TD3Settings, OffPolicyConfig):
    """Settings of TD3 and of the networks and the replay buffer that the training loop builds."""


class DDPGAgent(OffPolicyAgent):
    """An agent that learns by :class:`rl_plugins.DDPG`."""

    Algorithm, Config = DDPG, DDPGConfig


class TD3Agent(OffPolicyAgent):
    """An agent that learns by :class:`rl_plugins.TD3`."""

    Algorithm, Config = TD3, TD3Config

"""The policy and the critic that the training loop builds for an on-policy algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from rl_plugins.critics import AdamRegression, Critic, CriticFit, GaussNewtonRegression
from rl_plugins.errors import UsageError
from rl_plugins.imports import imported
from rl_plugins.policies import (
    POLICY_OUTPUT_GAIN,
    RecurrentPolicy,
    StochasticPolicy,
    feature_network,
    mlp,
)
from rl_plugins.settings import (
    Settings,
    require_between,
    require_least,
    require_one_of,
    require_sizes,
)

if TYPE_CHECKING:
    from gymnasium import Space

    from rl_plugins.policies.action_maps import ActionMap


@dataclass(frozen=True)
class OnPolicyConfig(Settings):
    """Settings of the policy, the critic and the advantages."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the policy and of the critic; wider for images and for bodies
    with many joints."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers: tanh for standardised numbers, relu for images."""
    observations: Literal["auto", "image", "numbers"] = "auto"
    """How a Box is read: "image" or "numbers" where the guess, which a run prints, is wrong."""
    body: str = ""
    """A network of one's own in front of the hidden layers, "module:function": the function of
    (width, images) makes a module. It reads numbers as they are, not standardised."""
    memory_size: int = 0
    """Width of the memory of a recurrent policy (a GRU), for tasks whose observations hide a part
    of the state; 0: no memory."""
    initial_log_std: float = -0.5
    """Initial log standard deviation of Gaussian policies, in half ranges of the action; 0 explores
    too much for most tasks."""
    action_bounds: Literal["clip", "tanh"] = "clip"
    """How continuous actions are kept within the bounds of the task: cut off there, or squashed
    smoothly."""
    normalise_observations: bool = True
    """Standardise observations by running moments kept in the policy; not needed where they are of
    unit size already."""
    normalise_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return. Seldom needed: the critic
    standardises its targets either way."""
    discount: float = 0.99
    """γ, the weight of a reward one step later; nearer to 1 where rewards come late."""
    decay: float = 0.95
    """λ of generalised advantage estimation; less has less variance and more bias."""
    critic: Literal["gauss-newton", "adam"] = "gauss-newton"
    """How the critic is fitted: a few steps on the whole rollout, without a learning rate, or many
    on minibatches."""
    critic_steps: int = 2
    """Gauss-Newton steps an update; more where explained_variance stays low."""
    critic_cg_iterations: int = 10
    """Conjugate-gradient iterations a Gauss-Newton step; fewer regularise."""
    critic_damping: float = 0.1
    """Damping of the Gauss-Newton matrix, for targets of unit variance; more for shorter steps."""
    critic_stride: int = 1
    """Estimate the Gauss-Newton matrix on every k-th state, for speed; the gradient uses all."""
    critic_epochs: int = 20
    """Adam's passes over the rollout an update; more where explained_variance stays low."""
    critic_batch_size: int = 128
    """States of Adam's minibatch; larger for speed."""
    critic_learning_rate: float = 1e-3
    """Adam's learning rate, for targets of unit variance; lower where the fit is unstable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "critic", "gauss-newton", "adam")
        require_one_of(self, "observations", "auto", "image", "numbers")
        require_one_of(self, "activation", "tanh", "relu")
        require_one_of(self, "action_bounds", "clip", "tanh")
        require_sizes(self, "hidden_sizes")
        require_between(self, 0, 1, "discount", "decay")
        require_between(self, -20, 5, "initial_log_std")
        require_least(self, 1, "critic_steps", "critic_cg_iterations", "critic_stride")
        require_least(self, 1, "critic_epochs", "critic_batch_size")
        require_least(self, 0, "critic_damping", "memory_size")
        require_least(self, 0, "critic_learning_rate", exclusive=True)


@dataclass(frozen=True)
class OnPolicyNetworks:
    """A policy and a critic that see observations through the same features.

    Attributes
    ----------
    policy
        Observations -> a distribution over actions, with a memory where the config asks for one.
    critic
        V(s).
    to_environment
        The policy's actions -> those of a vector environment.
    """

    policy: StochasticPolicy | RecurrentPolicy
    critic: Critic
    to_environment: ActionMap


def build_networks(
    observation_space: Space[Any],
    action_space: Space[Any],
    config: OnPolicyConfig,
    generator: torch.Generator,
) -> OnPolicyNetworks:
    """The policy and the critic for a task's spaces, untrained.

    Parameters
    ----------
    observation_space, action_space
        The spaces of one environment.
    config
        Sizes, and how the critic is fitted.
    generator
        Draws the initial weights; the critic keeps it to shuffle minibatches.

    Raises
    ------
    UsageError
        For unsupported spaces.
    """
    # Imported here: steps from one's own rollouts need no Gymnasium.
    from rl_plugins.policies.spaces import action_head, action_map, observation_features

    head = action_head(action_space, initial_log_std=config.initial_log_std)
    to_environment = action_map(action_space, bounds=config.action_bounds)
    make_body = None
    if config.body:
        if config.memory_size:
            raise UsageError("a body and a memory exclude each other; put the memory into the body")
        make_body = imported(config.body)
    features = observation_features(
        observation_space,
        normalise=config.normalise_observations and make_body is None,
        choices=head.choices,
        reading=config.observations,
    )
    network: Any = partial(
        feature_network,
        images=features.images,
        hidden_sizes=config.hidden_sizes,
        generator=generator,
        activation=nn.Tanh if config.activation == "tanh" else nn.ReLU,
        make_body=make_body,
    )
    width, memory, gain = features.width, config.memory_size, POLICY_OUTPUT_GAIN
    policy: StochasticPolicy | RecurrentPolicy
    if memory:
        encoder, inputs = nn.Identity(), width
        if features.images:
            inputs = config.hidden_sizes[-1] if config.hidden_sizes else memory
            encoder = network(width, outputs=inputs, output_gain=2**0.5)
        cell = _gru_cell(inputs, memory, generator)
        output = mlp(memory, (), head.outputs, output_gain=gain, generator=generator)
        policy = RecurrentPolicy(features, encoder, cell, output, head)
    else:
        behind = network(width, outputs=head.outputs, output_gain=gain)
        policy = StochasticPolicy(features, behind, head)
    value = network(width + memory, outputs=1, output_gain=1.0)
    regression: CriticFit
    if config.critic == "adam":
        regression = AdamRegression(
            value,
            epochs=config.critic_epochs,
            batch_size=config.critic_batch_size,
            learning_rate=config.critic_learning_rate,
            generator=generator,
        )
    else:
        regression = GaussNewtonRegression(
            steps=config.critic_steps,
            cg_iterations=config.critic_cg_iterations,
            damping=config.critic_damping,
            stride=config.critic_stride,
        )
    return OnPolicyNetworks(policy, Critic(features, value, regression), to_environment)


def _gru_cell(inputs: int, size: int, generator: torch.Generator) -> nn.GRUCell:
    # skip_init: GRUCell's own initialisation would draw from the global generator.
    cell: nn.GRUCell = nn.utils.skip_init(nn.GRUCell, inputs, size)  # type: ignore[no-untyped-call]
    for weight in (cell.weight_ih, cell.weight_hh):
        for gate in weight.chunk(3):
            nn.init.orthogonal_(gate, generator=generator)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)
    return cell

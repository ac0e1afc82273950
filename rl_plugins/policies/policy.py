"""Policies with a memory, and policies that return an action instead of a distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from rl_plugins.policies.heads import Head, Network
from rl_plugins.policies.networks import Perception
from rl_plugins.policies.normalisation import Reader
from rl_plugins.policies.observations import Features, Observations

Policy = Callable[[Any], Distribution]
"""Observations -> a distribution over actions with the batch shape of the observations."""

Sequences = Mapping[str, Any]
"""The observations of a recurrent policy's update: see :meth:`RecurrentPolicy.forward`."""


class RecurrentPolicy(nn.Module):
    """A policy with a memory: a gated recurrent unit between the features and the head.

    Parameters
    ----------
    features
        Observations -> the inputs of the policy.
    encoder
        Features -> the unit's inputs: the identity, or a :class:`Perception` for images.
    cell
        The unit; its state (N, h) is the memory.
    network
        Memory -> outputs.
    head
        Outputs -> the distribution over actions.
    """

    def __init__(
        self,
        features: Features,
        encoder: nn.Identity | Perception,
        cell: nn.GRUCell,
        network: Network,
        head: Head,
    ) -> None:
        super().__init__()
        self.features, self.encoder = features, encoder
        self.cell, self.network, self.head = cell, network, head

    def initial_memory(self, count: int) -> Tensor:
        """The memory at an episode's start: zeros (N, h).

        Parameters
        ----------
        count
            N, the number of environments.
        """
        return self.cell.weight_hh.new_zeros(count, self.cell.hidden_size)

    def advance(self, observations: Observations, memory: Tensor) -> tuple[Distribution, Tensor]:
        """One step of N environments: the distribution over actions, and the memory after it.

        Parameters
        ----------
        observations
            (N, …), in the structure of the space.
        memory
            (N, h), before the step.
        """
        memory = self.cell(self.encoder(self.features(observations)), memory)
        outputs = self.network(memory)
        return self.head(outputs, self.features.mask(observations)), memory

    def forward(self, sequences: Sequences) -> Distribution:
        """Whole sequences, as an update takes them: a distribution with batch shape (N, T).

        The gradient flows through time; memory that does not depend on the parameters enters only
        at the start of a sequence.

        Parameters
        ----------
        sequences
            {"observations": (N, T, …), "starts": (N, T), "memory": (N, h)}; ``starts`` says where
            an episode, and with it an empty memory, begins.
        """
        observations, starts, memory = (
            sequences[name] for name in ("observations", "starts", "memory")
        )
        count, steps = starts.shape
        flat = optree.tree_map(lambda x: x.flatten(0, 1), observations)
        inputs = self.encoder(self.features(flat)).view(count, steps, -1)
        keep = (~starts).to(inputs.dtype).unsqueeze(-1)
        memories = []
        for t in range(steps):
            memory = self.cell(inputs[:, t], memory * keep[:, t])
            memories.append(memory)
        outputs = self.network(torch.stack(memories, dim=1))
        mask = self.features.mask(flat)
        mask = None if mask is None else mask.view(count, steps, -1)
        distribution: Distribution = self.head(outputs, mask)
        return distribution

    def readers(self) -> list[Reader]:
        """The layers that must change with the statistics of the observations."""
        if isinstance(self.encoder, nn.Identity):
            return [(self.cell.weight_ih, self.cell.bias_ih)]
        first = self.encoder[0]
        assert isinstance(first, nn.Linear)
        return [(first.weight, first.bias)]


class DeterministicPolicy(nn.Module):
    """Observations (B, …) -> actions (B, d) in [−1, 1], stretched to the bounds of the task.

    Parameters
    ----------
    features
        Observations -> the inputs of the network.
    network
        Features -> d outputs, which tanh takes to ±1.
    """

    def __init__(self, features: Features, network: Network) -> None:
        super().__init__()
        self.features, self.network = features, network

    def forward(self, observations: Observations) -> Tensor:
        """The actions, (B, d).

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        """
        actions: Tensor = torch.tanh(self.network(self.features(observations)))
        return actions

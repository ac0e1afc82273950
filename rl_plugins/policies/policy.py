"""Policies: modules that map observations to actions, or to a distribution over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from rl_plugins.policies.heads import Head
from rl_plugins.policies.networks import Perception
from rl_plugins.policies.normalisation import Reader
from rl_plugins.policies.observations import Features, Observations

Policy = Callable[[Any], Distribution]
"""Observations -> a distribution over actions with the batch shape of the observations."""

Network = Any
"""A module from features to outputs, whose ``[0]`` reads the vector and ``[-1]`` answers."""


Sequences = Mapping[str, Any]
"""What a recurrent policy learns from: see :meth:`RecurrentPolicy.forward`."""


class StochasticPolicy(nn.Module):
    """Observations (B, …) -> a distribution over actions with batch shape (B,)."""

    def __init__(self, features: Features, network: Network, head: Head) -> None:
        super().__init__()
        self.features, self.network, self.head = features, network, head

    def forward(self, observations: Observations) -> Distribution:
        outputs = self.network(self.features(observations))
        distribution: Distribution = self.head(outputs, self.features.mask(observations))
        return distribution

    def readers(self) -> list[Reader]:
        """The layers that must change with the statistics of the observations."""
        first = self.network[0]
        return [(first.weight, first.bias)]


class RecurrentPolicy(nn.Module):
    """A policy with a memory: a gated recurrent unit between the features and the head.

    ``encoder`` turns features into the unit's inputs: the identity, or a :class:`Perception`.
    ``advance`` takes one step of N environments and carries the memory (N, h) on. ``forward``
    takes whole sequences, as an update does, and runs through time: memory independent of the
    parameters enters only at the start of a sequence.
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
        """(N, h) of zeros: that of an episode's start."""
        return self.cell.weight_hh.new_zeros(count, self.cell.hidden_size)

    def advance(self, observations: Observations, memory: Tensor) -> tuple[Distribution, Tensor]:
        """One step from observations (N, …) and the memory (N, h) before it."""
        memory = self.cell(self.encoder(self.features(observations)), memory)
        outputs = self.network(memory)
        return self.head(outputs, self.features.mask(observations)), memory

    def forward(self, sequences: Sequences) -> Distribution:
        """{"observations": (N, T, …), "starts": (N, T), "memory": (N, h)} -> batch shape (N, T).

        ``starts`` says where an episode begins, and with it an empty memory.
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
        if isinstance(self.encoder, nn.Identity):
            return [(self.cell.weight_ih, self.cell.bias_ih)]
        first = self.encoder[0]
        assert isinstance(first, nn.Linear)
        return [(first.weight, first.bias)]


class DeterministicPolicy(nn.Module):
    """Observations (B, …) -> actions (B, d) in [−1, 1], stretched to the bounds of the task."""

    def __init__(self, features: Features, network: Network) -> None:
        super().__init__()
        self.features, self.network = features, network

    def forward(self, observations: Observations) -> Tensor:
        actions: Tensor = torch.tanh(self.network(self.features(observations)))
        return actions

"""From features to a distribution over actions: a network, then a head for the kind of action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from rl_plugins.policies.joint import Joint
from rl_plugins.policies.normalisation import Reader
from rl_plugins.policies.observations import Features, Observations

Network = Any
"""A module from features to outputs, whose ``[0]`` reads the vector and ``[-1]`` answers."""


class Head(nn.Module):
    """Outputs of a network -> a distribution over actions.

    Attributes
    ----------
    outputs
        How many outputs of the network the head reads.
    choices
        Entries of a mask of valid actions that the head understands: one for every category, 0
        where nothing can be masked.
    """

    outputs: int
    choices: int = 0

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """A distribution with batch shape (…).

        Parameters
        ----------
        outputs
            (…, ``outputs``) of the network.
        mask
            (…, ``choices``) bool: the valid actions; None: all are.
        """
        raise NotImplementedError


class StochasticPolicy(nn.Module):
    """Observations (B, …) -> a distribution over actions with batch shape (B,).

    Parameters
    ----------
    features
        Observations -> the inputs of the network.
    network
        Features -> outputs.
    head
        Outputs -> the distribution.
    """

    def __init__(self, features: Features, network: Network, head: Head) -> None:
        super().__init__()
        self.features, self.network, self.head = features, network, head

    def forward(self, observations: Observations) -> Distribution:
        """The distribution over actions, of batch shape (B,).

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        """
        outputs = self.network(self.features(observations))
        distribution: Distribution = self.head(outputs, self.features.mask(observations))
        return distribution

    def readers(self) -> list[Reader]:
        """The layers that must change with the statistics of the observations."""
        first = self.network[0]
        return [(first.weight, first.bias)]


class CategoricalHead(Head):
    """One of n actions.

    Parameters
    ----------
    categories
        n.
    """

    def __init__(self, categories: int) -> None:
        super().__init__()
        self.outputs = self.choices = categories

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """See :meth:`Head.forward`."""
        valid = None if mask is None else _allowed(mask)
        return Categorical(logits=_masked(outputs, valid), validate_args=False)


class MultiCategoricalHead(Head):
    """k independent choices; a value is (…, k).

    The logits are padded to (…, k, max n) by categories of probability exactly 0, so that all
    choices are one tensor operation.

    Parameters
    ----------
    categories
        n₁, …, n_k: the number of actions of each choice.
    """

    index: Tensor
    exists: Tensor

    def __init__(self, categories: Sequence[int]) -> None:
        super().__init__()
        self.outputs = self.choices = sum(categories)
        sizes = torch.tensor(categories)
        column = torch.arange(int(sizes.max()))
        exists = column < sizes.unsqueeze(1)
        index = torch.where(exists, column + (sizes.cumsum(0) - sizes).unsqueeze(1), 0)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("exists", exists, persistent=False)

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """See :meth:`Head.forward`."""
        valid = self.exists
        if mask is not None:
            valid = valid & _allowed(mask[..., self.index] & self.exists)
        logits = _masked(outputs[..., self.index], valid)
        return Independent(Categorical(logits=logits, validate_args=False), 1, validate_args=False)


class BernoulliHead(Head):
    """k independent bits; a value is (…, k) of 0.0 and 1.0.

    Parameters
    ----------
    bits
        k.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.outputs = bits

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """See :meth:`Head.forward`; nothing can be masked."""
        return Independent(_Bits(logits=outputs, validate_args=False), 1, validate_args=False)


class _Bits(Bernoulli):
    @property
    def mode(self) -> Tensor:
        # torch's is NaN at even odds, which an untrained network gives for an input of zeros.
        return (self.probs >= 0.5).to(self.probs.dtype)


class GaussianHead(Head):
    """Diagonal normal in d dimensions, σ independent of the observation; a value is (…, d).

    One unit of action is half the range of a bounded dimension: see
    :func:`rl_plugins.policies.spaces.action_map`.

    Parameters
    ----------
    dimensions
        d.
    initial_log_std
        log σ at the start, the same in all dimensions.
    """

    def __init__(self, dimensions: int, initial_log_std: float) -> None:
        super().__init__()
        self.outputs = dimensions
        self.log_std = nn.Parameter(torch.full((dimensions,), initial_log_std))

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """See :meth:`Head.forward`; nothing can be masked."""
        scale = self.log_std.exp().expand_as(outputs)
        return Independent(Normal(outputs, scale, validate_args=False), 1, validate_args=False)


class JointHead(Head):
    """The heads of a Dict's or a Tuple's components, side by side.

    Parameters
    ----------
    heads
        One for each component, in the order of the columns of an action.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self._outputs = [head.outputs for head in heads]
        self._choices = [head.choices for head in heads]
        self.outputs, self.choices = sum(self._outputs), sum(self._choices)

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """See :meth:`Head.forward`; the columns of both are those of the heads, in order."""
        masks: Sequence[Tensor | None] = [None] * len(self._choices)
        if mask is not None:
            masks = torch.split(mask, self._choices, dim=-1)
        pieces = torch.split(outputs, self._outputs, dim=-1)
        triples = zip(self.heads, pieces, masks, strict=True)
        return Joint([head(piece, part) for head, piece, part in triples])


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    # The least number, not −inf: probability and gradient are exactly 0 either way, but entropy
    # and KL would be 0 · ∞.
    return logits if mask is None else logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def _allowed(mask: Tensor) -> Tensor:
    """The mask, with everything valid where nothing is: log-probabilities need one valid action."""
    return mask | ~mask.any(dim=-1, keepdim=True)

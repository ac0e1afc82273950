"""What every on-policy step is measured by: the surrogate, the KL, means over a masked batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from natgrad.curvature import metrics


class Surrogate:
    """L(π) = E[π/π_old · A] and E[KL(π_old ‖ π)] over states seen under π_old.

    ``policy(observations)`` must have the batch shape of ``advantages``, (B,) or, for sequences,
    (B, T), so that ``log_prob`` is one number a step. ``mask`` (the same shape, bool) leaves steps
    out of every mean: padding, and whatever else is not to be learnt from. Actions and advantages
    there may be anything, observations must be finite. Means are taken in float64. Raises
    ``ValueError`` where the shapes do not fit or the batch is empty.

    Source: Schulman et al. 2015, equation 14; L and its gradient agree with those of the expected
    return at π_old.
    """

    def __init__(
        self,
        policy: Callable[[Any], Distribution],
        observations: Any,
        actions: Tensor,
        advantages: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        # A critic that shares layers with the policy, or a reparametrised draw, must not pull g.
        self.observations = observations
        self.actions, self.advantages = actions.detach(), advantages.detach()
        if mask is not None and (mask.shape != advantages.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"the mask is {tuple(mask.shape)} {mask.dtype}; expected bool, shaped like the "
                f"advantages, {tuple(advantages.shape)}"
            )
        self.mask = mask
        self.count = advantages.numel() if mask is None else int(mask.sum())
        if not self.count:
            raise ValueError("the batch is empty: a step needs at least one state")
        if mask is not None:
            # The gradient of a NaN that no mean counts is 0 · NaN, and not 0.
            self.actions = _padded(self.actions, mask)
            self.advantages = self.advantages.where(mask, 0.0)
        with torch.no_grad():
            # A copy: a distribution may share memory with a parameter that a step overwrites.
            self.old = copy.deepcopy(policy(observations))
            self.old_log_prob = self.old.log_prob(self.actions)
            if self.old_log_prob.shape != advantages.shape:
                # Broadcasting would make a (B, B) matrix of it, and a wrong step, in silence.
                raise ValueError(
                    f"log_prob of the actions has shape {tuple(self.old_log_prob.shape)}, the "
                    f"advantages {tuple(advantages.shape)}; both must be (B,), or (B, T) for "
                    "sequences. Wrap a distribution over several action dimensions in "
                    "torch.distributions.Independent(..., 1)"
                )

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the steps that count, in float64."""
        if self.mask is None:
            return values.mean(dtype=torch.float64)
        return torch.where(self.mask, values, 0.0).sum(dtype=torch.float64) / self.count

    def ratio(self, pi: Distribution) -> Tensor:
        """π/π_old of the actions taken, shaped like the advantages; 1 where masked."""
        difference = pi.log_prob(self.actions) - self.old_log_prob
        return torch.exp(difference if self.mask is None else difference.where(self.mask, 0.0))

    def objective(self, pi: Distribution) -> Tensor:
        """L(π), a scalar to maximise."""
        return self.mean(self.ratio(pi) * self.advantages)

    def improvement(self, pi: Distribution) -> Tensor:
        """L(π) − L(π_old)."""
        return self.objective(pi) - self.mean(self.advantages)

    def kl(self, pi: Distribution) -> Tensor:
        """E[KL(π_old ‖ π)]: the direction of the theory, on all states."""
        return self.mean(metrics.kl_divergence(self.old, pi))

    def entropy(self) -> Tensor:
        """E[entropy of π_old]; NaN for families that have no formula, such as squashed normals."""
        try:
            return self.mean(self.old.entropy()).detach()
        except NotImplementedError:
            return torch.tensor(math.nan)

    def minibatches(
        self,
        epochs: int,
        size: int,
        generator: torch.Generator,
        old: Callable[[Any], Distribution] | None = None,
    ) -> Iterator[Surrogate]:
        """``epochs`` passes over the samples in a new order each, in parts of ``size`` steps; of
        sequences, as many as hold about so many steps that count. ``old``: see :meth:`part`."""
        samples = len(self.advantages)
        per_part = max(1, size * samples // self.count)
        for _ in range(epochs):
            order = torch.randperm(samples, generator=generator)
            for index in torch.split(order, per_part):
                part = self.part(index, old)
                if part.count:  # nothing is to be learnt from padding alone
                    yield part

    def part(self, index: Tensor, old: Callable[[Any], Distribution] | None = None) -> Surrogate:
        """The same over some of the samples (of the sequences, if there are any).

        A distribution cannot be indexed: where the KL of the part is asked for, ``old`` is π_old
        as a function of observations.
        """
        part = copy.copy(self)
        part.observations = optree.tree_map(lambda leaf: leaf[index], self.observations)
        part.actions, part.advantages = self.actions[index], self.advantages[index]
        part.old_log_prob = self.old_log_prob[index]
        if self.mask is not None:
            part.mask = self.mask[index]
        part.count = part.advantages.numel() if part.mask is None else int(part.mask.sum())
        del part.old
        if old is not None:
            with torch.no_grad():
                part.old = old(part.observations)
        return part


def frozen(policy: nn.Module) -> Callable[[Any], Distribution]:
    """The policy as it is now, whatever becomes of its parameters."""
    parameters = {name: p.detach().clone() for name, p in policy.named_parameters()}
    return lambda observations: functional_call(policy, parameters, (observations,))


def _padded(actions: Tensor, mask: Tensor) -> Tensor:
    """The actions, with one that was taken in place of those that are not to be learnt from."""
    if actions.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"the actions are {tuple(actions.shape)}; expected the leading dimensions of the mask, "
            f"{tuple(mask.shape)}"
        )
    padded = actions.clone()
    padded[~mask] = actions[mask][0]
    return padded

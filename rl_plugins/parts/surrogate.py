"""On-policy steps: the base class of NPG, TRPO, PPO and A2C, and the surrogate that they climb."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import optree
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from natgrad.curvature import metrics
from rl_plugins.reports import StepReport
from rl_plugins.settings import Settings, configure

SettingsType = TypeVar("SettingsType", bound=Settings)


class PolicyStep(Generic[SettingsType]):
    """A step of a policy from states, actions and advantages. Subclasses define :meth:`step`.

    Parameters
    ----------
    policy
        A module that maps observations to a ``torch.distributions.Distribution`` with the batch
        shape of the advantages.
    generator
        Shuffles minibatches, where the algorithm has any; the default is seeded with 0.
    **settings
        Fields of ``Settings``; an unknown name raises :class:`rl_plugins.UsageError`.
    """

    Settings: type[SettingsType]
    counters: ClassVar[tuple[str, ...]] = ()
    """Names of attributes, plain numbers, that are saved with the policy and the optimizers."""

    def __init__(
        self, policy: nn.Module, *, generator: torch.Generator | None = None, **settings: Any
    ) -> None:
        if not isinstance(policy, nn.Module):
            raise TypeError(
                f"{type(self).__name__} takes a policy, a torch.nn.Module from observations to a "
                f"distribution; got {policy!r}. rl_plugins.train(algorithm, task) makes one"
            )
        self.policy, self.settings = policy, configure(self.Settings, settings)
        self.generator = generator or torch.Generator().manual_seed(0)
        self.optimizers: list[torch.optim.Optimizer] = []

    def parameters(self) -> list[Tensor]:
        """The policy's parameters that are trained."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def step(
        self, observations: Any, actions: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> StepReport:
        """One step of the policy.

        Parameters
        ----------
        observations, actions, advantages, mask
            As for :class:`Surrogate`.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All state but the generator's, which its owner saves."""
        counters = {name: getattr(self, name) for name in self.counters}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {**counters, "optimizers": optimizers, "policy": self.policy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """
        for name in self.counters:
            setattr(self, name, state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.policy.load_state_dict(state["policy"])


class Surrogate:
    """L(π) = E[π/π_old · A] and E[KL(π_old ‖ π)] over states seen under π_old.

    Parameters
    ----------
    policy
        π_old: observations -> a distribution with the batch shape of the advantages, so that
        ``log_prob`` is one number a step.
    observations
        B states, or N sequences of T, in the form that the policy takes; all finite.
    actions
        The actions taken there, (B, …) or (N, T, …).
    advantages
        One number a step, (B,) or (N, T).
    mask
        bool, shaped like the advantages: the steps that count in every mean; None: all. It leaves
        out padding and other steps that are not to be learnt from, whose actions and advantages may
        be anything.

    Raises
    ------
    ValueError
        Where the shapes do not fit or the batch is empty.
    TypeError
        Where actions, advantages or mask are no tensors, or the policy returns no distribution.

    Notes
    -----
    Means are taken in float64. Source: Schulman et al. 2015, equation 14; L and its gradient agree
    with those of the expected return at π_old.
    """

    def __init__(
        self,
        policy: Callable[[Any], Distribution],
        observations: Any,
        actions: Tensor,
        advantages: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        _require_tensors(actions=actions, advantages=advantages, mask=mask)
        # Detached: g must not include paths through a shared critic or a reparametrised sample.
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
            # Replace masked NaNs: 0 × NaN is NaN, in the gradient too.
            self.actions = _padded(self.actions, mask)
            self.advantages = self.advantages.where(mask, 0.0)
        with torch.no_grad():
            # A copy: a distribution may share memory with a parameter that a step overwrites.
            self.old = copy.deepcopy(_distribution(policy(observations)))
            self.old_log_prob = self.old.log_prob(self.actions)
            if self.old_log_prob.shape != advantages.shape:
                # Broadcasting would silently make a (B, B) matrix of it, and a wrong step.
                raise ValueError(
                    f"log_prob of the actions has shape {tuple(self.old_log_prob.shape)}, the "
                    f"advantages {tuple(advantages.shape)}; both must be (B,), or (B, T) for "
                    "sequences. Wrap a distribution over several action dimensions in "
                    "torch.distributions.Independent(..., 1)"
                )

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the steps that count, in float64.

        Parameters
        ----------
        values
            Shaped like the advantages.
        """
        if self.mask is None:
            return values.mean(dtype=torch.float64)
        return torch.where(self.mask, values, 0.0).sum(dtype=torch.float64) / self.count

    def ratio(self, pi: Distribution) -> Tensor:
        """π/π_old of the actions taken, shaped like the advantages; 1 where masked.

        Parameters
        ----------
        pi
            π, a distribution on the same states.
        """
        difference = pi.log_prob(self.actions) - self.old_log_prob
        return torch.exp(difference if self.mask is None else difference.where(self.mask, 0.0))

    def objective(self, pi: Distribution) -> Tensor:
        """L(π), a scalar to maximise.

        Parameters
        ----------
        pi
            π, a distribution on the same states.
        """
        return self.mean(self.ratio(pi) * self.advantages)

    def improvement(self, pi: Distribution) -> Tensor:
        """L(π) − L(π_old).

        Parameters
        ----------
        pi
            π, a distribution on the same states.
        """
        return self.objective(pi) - self.mean(self.advantages)

    def kl(self, pi: Distribution) -> Tensor:
        """E[KL(π_old ‖ π)]: the direction of the theory, on all states.

        Parameters
        ----------
        pi
            π, a distribution on the same states.
        """
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
        """The same over shuffled minibatches.

        Parameters
        ----------
        epochs
            Passes over the samples, each in a new order.
        size
            Steps of a minibatch; of sequences, as many as hold about so many steps that count.
        generator
            Shuffles.
        old
            See :meth:`part`.
        """
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

        Parameters
        ----------
        index
            Integers, or bool shaped like the advantages.
        old
            π_old as a function of observations, where :meth:`kl` of the part will be asked for: a
            distribution cannot be indexed.
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


def _require_tensors(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            got = type(value).__name__
            raise TypeError(f"{name} must be a tensor, got {got}; use torch.as_tensor({name})")


def _distribution(outputs: Any) -> Distribution:
    """What the policy returned. Raises ``TypeError`` unless it is a distribution."""
    if not isinstance(outputs, Distribution):
        raise TypeError(
            f"the policy returned a {type(outputs).__name__}; a step needs a "
            "torch.distributions.Distribution: return Categorical(logits=outputs) for discrete "
            "actions, Independent(Normal(mean, deviation), 1) for continuous ones"
        )
    return outputs


def _padded(actions: Tensor, mask: Tensor) -> Tensor:
    """The actions, with a valid one in place of those that do not count."""
    if actions.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"the actions are {tuple(actions.shape)}; expected the leading dimensions of the mask, "
            f"{tuple(mask.shape)}"
        )
    padded = actions.clone()
    padded[~mask] = actions[mask][0]
    return padded

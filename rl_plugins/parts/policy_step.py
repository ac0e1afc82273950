"""What the steps of NPG, TRPO, PPO and A2C share: policy, settings, optimizers and state."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

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
        observations
            B states, or N sequences of T, in whatever form the policy takes.
        actions
            The actions taken there, (B, ...) or (N, T, ...).
        advantages
            One number a step, (B,) or (N, T).
        mask
            bool, shaped like the advantages: the steps that count; None: all.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All state but the generator's, which its owner saves."""
        counters = {name: getattr(self, name) for name in self.counters}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {**counters, "optimizers": optimizers, "policy": self.policy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        for name in self.counters:
            setattr(self, name, state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.policy.load_state_dict(state["policy"])

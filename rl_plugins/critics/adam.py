"""Least squares by Adam on shuffled minibatches, as the field's libraries fit their critics."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor, nn

from rl_plugins.policies.observations import FeatureBatch


class AdamRegression:
    """``epochs`` passes over shuffled minibatches; Adam's moments live on between fits."""

    def __init__(
        self,
        network: nn.Module,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        generator: torch.Generator,
    ) -> None:
        # fused: one kernel a step; the small networks of RL spend their time in launches.
        self._optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
        self._epochs, self._batch_size, self._generator = epochs, batch_size, generator

    def fit(self, network: nn.Module, features: FeatureBatch, targets: Tensor) -> None:
        if not bool(torch.isfinite(targets).all()):
            return  # one NaN would be in every weight after one epoch
        for _ in range(self._epochs):
            order = torch.randperm(len(targets), generator=self._generator)
            for batch in torch.split(order, self._batch_size):
                part = optree.tree_map(lambda leaf: leaf[batch], features)  # noqa: B023
                loss = (network(part).squeeze(-1) - targets[batch]).square().mean()
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)

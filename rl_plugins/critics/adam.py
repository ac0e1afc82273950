"""Least squares by Adam on shuffled minibatches, as the field's libraries fit their critics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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

    def fit(self, network: nn.Module, features: Tensor, targets: Tensor) -> None:
        for _ in range(self._epochs):
            order = torch.randperm(len(features), generator=self._generator)
            for batch in torch.split(order, self._batch_size):
                loss = (network(features[batch]).squeeze(-1) - targets[batch]).square().mean()
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)

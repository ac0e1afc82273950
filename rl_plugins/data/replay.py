"""Past transitions, each observation stored once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from rl_plugins.data.rollout import Rollout


@dataclass(frozen=True)
class Transitions:
    """B steps: ``observations`` and ``next_observations`` (B, …), ``actions`` (B, …), ``rewards``
    (B,), ``terminated`` (B,) bool. A step cut off by a time limit is not terminated, and its next
    observation is the true last one."""

    observations: Any
    actions: Tensor
    rewards: Tensor
    next_observations: Any
    terminated: Tensor

    def __len__(self) -> int:
        return len(self.rewards)


class ReplayBuffer:
    """A ring of about ``capacity`` transitions, in one column for each environment.

    A column holds its observations in the order they were seen, so that the next observation of a
    slot is that of the slot behind it. Only an episode that is cut off needs one slot more, for
    its last observation; the slot of a terminated one is followed by the next episode, which its
    transition never reads but as the argument of a value that is multiplied by nothing.
    Observations keep their dtype: images stay bytes. Memory is taken as it is filled.

    Cost: a sample copies 2 B observations; the first sample after an ``add`` lists the valid
    slots, a pass over one byte each.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2 transitions, got {capacity}")
        self.capacity = capacity
        self._observations: Any = None
        self._drawable: Tensor | None = None

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return 0 if self._observations is None else int(self._valid.sum())

    def add(self, rollout: Rollout) -> None:
        """Store a rollout; the oldest transitions make room. Raises ``ValueError`` where it is
        longer than a column."""
        count = rollout.rewards.shape[1]
        if self._observations is None:
            self._allocate(rollout, count)
        for column in range(count):
            self._add_column(rollout, column)
        self._drawable = None

    def sample(self, size: int, generator: torch.Generator) -> Transitions:
        """``size`` transitions, uniformly with replacement. Raises ``ValueError`` if empty."""
        if not len(self):
            raise ValueError("the replay buffer is empty: add a rollout first")
        if self._drawable is None:
            self._drawable = torch.from_numpy(np.flatnonzero(self._valid))
        drawn = torch.randint(len(self._drawable), (size,), generator=generator)
        index = self._drawable[drawn]
        slot = index % self._length
        following = index - slot + (slot + 1) % self._length
        return Transitions(
            self._read(index),
            self._actions[index],
            self._rewards[index],
            self._read(following),
            self._terminated[index],
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything stored, as tensors; the observations in the structure of the space."""
        if self._observations is None:
            return {}
        count = len(self._cursors)
        used = self._length if self._wrapped else int(self._cursors.max()) + 1

        def filled(leaf: Tensor) -> Tensor:
            return leaf.view(count, self._length, *leaf.shape[1:])[:, :used].clone()

        return {
            "observations": optree.tree_map(filled, self._observations),
            "actions": filled(self._actions),
            "rewards": filled(self._rewards),
            "terminated": filled(self._terminated),
            "valid": filled(torch.from_numpy(self._valid)),
            "cursors": torch.from_numpy(self._cursors),
            "wrapped": self._wrapped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        count, used = state["rewards"].shape
        self._length = -(-self.capacity // count) + 1

        def whole(leaf: Tensor) -> Tensor:
            slots = leaf.new_zeros((count, self._length, *leaf.shape[2:]))
            slots[:, :used] = leaf
            return slots.flatten(0, 1)

        self._observations = optree.tree_map(whole, state["observations"])
        self._actions, self._rewards = whole(state["actions"]), whole(state["rewards"])
        self._terminated = whole(state["terminated"])
        self._valid, self._cursors = whole(state["valid"]).numpy(), state["cursors"].numpy()
        self._wrapped = state["wrapped"]
        self._drawable = None

    def _allocate(self, rollout: Rollout, count: int) -> None:
        # One slot a column is the observation that has not been acted on yet.
        self._length = -(-self.capacity // count) + 1
        slots = self._length * count

        def empty(leaf: Tensor) -> Tensor:
            # NumPy's zeros take memory as it is written; torch's, at once.
            return torch.from_numpy(np.zeros((slots, *leaf.shape[1:]), leaf.numpy().dtype))

        self._observations = optree.tree_map(empty, rollout.next_observations)
        self._actions, self._rewards = empty(rollout.actions[0]), empty(rollout.rewards[0])
        self._terminated = empty(rollout.terminated[0])
        self._valid = np.zeros(slots, dtype=bool)
        self._cursors = np.zeros(count, dtype=np.int64)
        self._wrapped = False

    def _add_column(self, rollout: Rollout, column: int) -> None:
        keep = rollout.valid[:, column]
        cut = rollout.truncated[keep, column].long()
        if not len(cut):
            return
        # A cut-off step is followed by its last observation, and everything after moves by one.
        offsets = torch.arange(len(cut)) + cut.cumsum(0) - cut
        taken = len(cut) + int(cut.sum())
        if taken >= self._length:
            raise ValueError(
                f"a rollout takes {taken} slots of a column, the buffer has {self._length}; "
                "raise buffer_size or shorten rollout_length"
            )
        cursor = self._cursor(rollout, column)
        base = column * self._length

        def place(offset: Tensor | int) -> Any:
            return base + (cursor + offset) % self._length

        self._valid[place(torch.arange(taken + 1)).numpy()] = False
        slots = place(offsets)
        self._valid[slots.numpy()] = True
        self._write(slots, optree.tree_map(lambda leaf: leaf[keep, column], rollout.observations))
        self._actions[slots] = rollout.actions[keep, column]
        self._rewards[slots] = rollout.rewards[keep, column]
        self._terminated[slots] = rollout.terminated[keep, column]
        owner = rollout.truncated.nonzero()[:, 1] == column
        self._write(
            place(offsets[cut.bool()] + 1),
            optree.tree_map(lambda leaf: leaf[owner], rollout.final_observations),
        )
        self._write(
            place(taken), optree.tree_map(lambda leaf: leaf[column], rollout.next_observations)
        )
        self._wrapped |= cursor + taken >= self._length
        self._cursors[column] = (cursor + taken) % self._length

    def _cursor(self, rollout: Rollout, column: int) -> int:
        """Where the rollout begins: at the observation that is waiting there, or behind it if the
        environment was reset in between, since the last transition still needs it."""
        cursor = int(self._cursors[column])
        before = column * self._length + (cursor - 1) % self._length
        if not self._valid[before] or bool(self._terminated[before]):
            return cursor
        waiting = optree.tree_map(
            lambda leaf: leaf[column * self._length + cursor], self._observations
        )
        first = optree.tree_map(lambda leaf: leaf[0, column], rollout.observations)
        pairs = zip(optree.tree_leaves(waiting), optree.tree_leaves(first), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
        return cursor if same else (cursor + 1) % self._length

    def _read(self, index: Tensor) -> Any:
        return optree.tree_map(lambda leaf: leaf[index], self._observations)

    def _write(self, slots: Tensor | int, observations: Any) -> None:
        def put(kept: Tensor, new: Tensor) -> None:
            kept[slots] = new

        optree.tree_map_(put, self._observations, observations)

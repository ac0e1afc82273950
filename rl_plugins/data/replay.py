"""Past transitions, each observation stored once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from rl_plugins.data.rollout import Rollout
from rl_plugins.errors import UsageError


@dataclass(frozen=True)
class Transitions:
    """B steps from anywhere in the past.

    Attributes
    ----------
    observations, actions
        (B, …).
    rewards
        (B,).
    next_observations
        (B, …), the true last observation where a time limit ended the episode.
    terminated
        (B,) bool, False where a time limit ended the episode.
    """

    observations: Any
    actions: Tensor
    rewards: Tensor
    next_observations: Any
    terminated: Tensor

    def __len__(self) -> int:
        return len(self.rewards)


class ReplayBuffer:
    """A ring of past transitions, in one column for each environment.

    A column holds its observations in the order they were seen, so that the next observation of a
    slot is that of the slot behind it. Only an episode that is cut off needs one slot more, for
    its last observation. The slot of a terminated one is followed by the next episode: a value of
    that observation is computed, but masked out of the target. Observations keep their dtype:
    images stay bytes.

    Parameters
    ----------
    capacity
        Transitions that are kept, about: it is rounded up to whole columns.

    Notes
    -----
    Cost: a sample of B copies 2 B observations; the first sample after an ``add`` lists the valid
    slots, a pass over one byte each. Memory, and a checkpoint, grow as the buffer fills.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2 transitions, got {capacity}")
        self.capacity = capacity
        self._observations: Any = None
        self._valid = np.zeros((0, 0), dtype=bool)
        self._drawable: Tensor | None = None

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return int(self._valid.sum())

    def add(self, rollout: Rollout) -> None:
        """Store a rollout; the oldest transitions make room.

        Parameters
        ----------
        rollout
            T steps of as many environments as in all rollouts before.

        Raises
        ------
        UsageError
            Where it is longer than a column.
        ValueError
            Where it has another number of environments.
        """
        steps, count = rollout.rewards.shape
        if self._observations is None:
            self._allocate(rollout.next_observations, rollout.actions[0])
        if count != len(self._cursors):
            raise ValueError(
                f"the rollout has {count} environments, those before had {len(self._cursors)}"
            )
        if steps >= self._length:
            raise UsageError(
                f"a rollout of {steps} steps of {count} environments is longer than the replay "
                f"buffer of {self.capacity} transitions; raise buffer_size or shorten "
                "rollout_length"
            )
        for column in range(count):
            self._add_column(rollout, column)
        self._drawable = None

    def sample(self, size: int, generator: torch.Generator) -> Transitions:
        """Transitions drawn uniformly with replacement.

        Parameters
        ----------
        size
            Their number.
        generator
            Source of all randomness.

        Raises
        ------
        ValueError
            If the buffer is empty.
        """
        if self._drawable is None:
            self._drawable = torch.from_numpy(np.flatnonzero(self._valid))
        if not len(self._drawable):
            raise ValueError("the replay buffer is empty: add a rollout first")
        drawn = torch.randint(len(self._drawable), (size,), generator=generator)
        index = self._drawable[drawn]
        slot = index % self._length
        following = index - slot + (slot + 1) % self._length

        def read(leaf: Tensor) -> Tensor:
            return leaf.flatten(0, 1)[index]

        return Transitions(
            optree.tree_map(read, self._observations),
            read(self._actions),
            read(self._rewards),
            optree.tree_map(lambda leaf: leaf.flatten(0, 1)[following], self._observations),
            read(self._terminated),
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, as tensors (N, …) in the structure of the observations."""
        if self._observations is None:
            return {}

        def used(leaf: Tensor) -> Tensor:
            # A slice alone would be saved with all the memory behind it.
            return leaf[:, : self._used].clone()

        return {
            "observations": optree.tree_map(used, self._observations),
            "actions": used(self._actions),
            "rewards": used(self._rewards),
            "terminated": used(self._terminated),
            "valid": used(torch.from_numpy(self._valid)),
            "cursors": torch.from_numpy(self._cursors.copy()),
            "length": self._length,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the transitions of another buffer.

        Parameters
        ----------
        state
            From :meth:`state_dict`.

        Raises
        ------
        ValueError
            Where that buffer had another capacity.
        """
        self._observations = self._drawable = None
        self._valid = self._valid[:0]
        if not state:
            return
        first = optree.tree_map(lambda leaf: leaf[:, 0], state["observations"])
        self._allocate(first, state["actions"][:, 0])
        if state["length"] != self._length:
            raise ValueError(
                f"the state has columns of {state['length']} slots, this buffer of {self._length}"
            )
        self._used = state["valid"].shape[1]

        def put(kept: Tensor, new: Tensor) -> None:
            kept[:, : self._used] = new

        optree.tree_map_(put, self._observations, state["observations"])
        put(self._actions, state["actions"])
        put(self._rewards, state["rewards"])
        put(self._terminated, state["terminated"])
        put(torch.from_numpy(self._valid), state["valid"])
        self._cursors[:] = state["cursors"].numpy()

    def _allocate(self, observations: Any, actions: Tensor) -> None:
        """Columns for observations (N, …) and actions (N, …) like these."""
        count = len(actions)
        # One slot a column is the observation that has not been acted on yet. With fewer than two
        # others there would be no room for a transition that is cut off.
        self._length = max(-(-self.capacity // count), 2) + 1
        self._used = 0

        def zeros(like: Tensor) -> Tensor:
            # NumPy's zeros take no memory before something is written.
            shape = (count, self._length, *like.shape[1:])
            return torch.from_numpy(np.zeros(shape, like.numpy().dtype))

        self._observations = optree.tree_map(zeros, observations)
        self._actions = zeros(actions)
        self._rewards = zeros(torch.empty(count))
        self._terminated = zeros(torch.empty(count, dtype=torch.bool))
        self._valid = np.zeros((count, self._length), dtype=bool)
        self._cursors = np.zeros(count, dtype=np.int64)

    def _add_column(self, rollout: Rollout, column: int) -> None:
        keep = rollout.valid[:, column]
        # Where too many episodes were cut off, the oldest steps find no room.
        needed = keep * (1 + rollout.truncated[:, column].long())
        keep = keep & (needed.flip(0).cumsum(0).flip(0) < self._length)
        cut = rollout.truncated[keep, column].long()
        if not len(cut):
            return
        # A cut-off step is followed by its last observation, and everything after moves by one.
        offsets = torch.arange(len(cut)) + cut.cumsum(0) - cut
        taken = len(cut) + int(cut.sum())
        observations = optree.tree_map(lambda leaf: leaf[keep, column], rollout.observations)
        cursor = self._cursor(observations, column)

        def place(offset: Tensor | int) -> Any:
            return (cursor + offset) % self._length

        self._valid[column, place(torch.arange(taken + 1)).numpy()] = False
        slots = place(offsets)
        self._valid[column, slots.numpy()] = True
        self._write(column, slots, observations)
        self._actions[column, slots] = rollout.actions[keep, column]
        self._rewards[column, slots] = rollout.rewards[keep, column]
        self._terminated[column, slots] = rollout.terminated[keep, column]
        step, owner = rollout.truncated.nonzero().T
        final = (owner == column) & keep[step]
        self._write(
            column,
            place(offsets[cut.bool()] + 1),
            optree.tree_map(lambda leaf: leaf[final], rollout.final_observations),
        )
        waiting = optree.tree_map(lambda leaf: leaf[column], rollout.next_observations)
        self._write(column, place(taken), waiting)
        self._cursors[column] = place(taken)
        self._used = min(max(self._used, cursor + taken + 1), self._length)

    def _cursor(self, observations: Any, column: int) -> int:
        """The slot where observations (T, …) begin: that of the waiting observation, or behind it
        if the environment was reset in between, since the last transition still needs it."""
        cursor = int(self._cursors[column])
        before = (cursor - 1) % self._length
        if not self._valid[column, before] or bool(self._terminated[column, before]):
            return cursor
        pairs = zip(
            optree.tree_leaves(self._observations), optree.tree_leaves(observations), strict=True
        )
        same = all(torch.equal(kept[column, cursor], new[0]) for kept, new in pairs)
        return cursor if same else (cursor + 1) % self._length

    def _write(self, column: int, slots: Tensor | int, observations: Any) -> None:
        def put(kept: Tensor, new: Tensor) -> None:
            kept[column, slots] = new

        optree.tree_map_(put, self._observations, observations)

"""The replay buffer against a list of everything that ever happened."""

import io
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import optree
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.distributions import Categorical

from rl_plugins import UsageError
from rl_plugins.data import ReplayBuffer, Rollout, Transitions
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.policies import Sampling

GO, TERMINATE, TRUNCATE = range(3)


def column(capacity, count):
    """Transitions of one environment that there is room for."""
    return max(-(-capacity // count), 2)


@dataclass
class Happened:
    """One transition of a column; ``slots`` are what it costs there, beside the next one."""

    observation: int
    following: int
    terminated: bool
    slots: int


@dataclass
class World:
    """N environments that count on whatever happens, so that observations tell themselves apart;
    modulo ``coarse`` they do not. Every reward is the number of its transition in ``history``."""

    count: int
    next_step: bool
    coarse: int
    structured: bool
    counter: int = 0
    history: dict[Any, Any] = field(default_factory=dict)
    columns: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self.columns = [[] for _ in range(self.count)]
        self.restart()

    def fresh(self):
        self.counter += 1
        return self.counter % self.coarse

    def restart(self):
        self.now = [self.fresh() for _ in range(self.count)]
        self.resetting = [False] * self.count

    def see(self, numbers):
        """Observations that show the numbers, of any leading shape."""
        numbers = torch.tensor(numbers, dtype=torch.float32).unsqueeze(-1)
        if not self.structured:
            return numbers
        picture = (numbers[..., None] % 256).to(torch.uint8).expand(*numbers.shape, 2)
        return {"picture": picture, "pair": (numbers, numbers[..., 0].to(torch.int64))}

    def read(self, observations):
        """The numbers again, after making sure that all leaves show the same ones."""
        if not self.structured:
            return observations.squeeze(-1).long()
        numbers, integers = observations["pair"]
        assert observations["picture"].dtype == torch.uint8
        assert bool((observations["picture"] == (numbers[..., None] % 256)).all())
        assert torch.equal(numbers[:, 0].long(), integers)
        return integers

    def rollout(self, events):
        """T rows of N events."""
        shape = (len(events), self.count)
        numbers, rewards = np.zeros(shape), torch.zeros(shape)
        terminated, truncated, starts = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        valid = torch.ones(shape, dtype=torch.bool)
        finals = []
        for t, row in enumerate(events):
            for n, event in enumerate(row):
                numbers[t, n] = self.now[n]
                if self.resetting[n]:
                    self.now[n], self.resetting[n], valid[t, n] = self.fresh(), False, False
                    continue
                following = self.fresh()
                self.take(n, self.now[n], following, event)
                rewards[t, n] = len(self.history) - 1
                terminated[t, n], truncated[t, n] = event == TERMINATE, event == TRUNCATE
                finals += [following] if event == TRUNCATE else []
                self.now[n] = following
                if event != GO:
                    self.resetting[n] = self.next_step
                    self.now[n] = following if self.next_step else self.fresh()
        none = self.see(np.zeros((0,)))
        return Rollout(
            observations=self.see(numbers), actions=rewards[..., None] / 2, rewards=rewards,
            terminated=terminated, truncated=truncated, starts=starts, valid=valid,
            next_observations=self.see(self.now),
            final_observations=self.see(finals) if finals else none,
            episode_returns=[], episode_lengths=[],
        )  # fmt: skip

    def take(self, n, observation, following, event):
        column = self.columns[n]
        if column:
            before = self.history[column[-1]]
            # A new episode that nobody saw begin: the old one's last observation needs its slot.
            if before.slots == 1 and not before.terminated and before.following != observation:
                before.slots = 2
        column.append(len(self.history))
        self.history[len(self.history)] = Happened(
            observation, following, event == TERMINATE, 2 if event == TRUNCATE else 1
        )

    def newest(self, n, length):
        """What a column of so many slots has room for; one slot is that of the observation that
        waits for its action."""
        kept, slots = set(), 1
        for number in reversed(self.columns[n]):
            slots += self.history[number].slots
            if slots > length:
                break
            kept.add(number)
        return kept

    def assert_remembered_by(self, buffer, capacity, generator):
        drawn = buffer.sample(60 * (capacity + self.count), generator)
        numbers = drawn.rewards.long().tolist()
        assert drawn.actions.squeeze(-1).tolist() == [number / 2 for number in numbers]
        observed = self.read(drawn.observations).tolist()
        following = self.read(drawn.next_observations).tolist()
        for k, number in enumerate(numbers):
            happened = self.history[number]
            assert observed[k] == happened.observation
            assert bool(drawn.terminated[k]) == happened.terminated
            if not happened.terminated:
                assert following[k] == happened.following
        length = column(capacity, self.count) + 1
        # As many different ones as there are slots to draw: none is in it twice.
        assert len(set(numbers)) == len(buffer) <= (length - 1) * self.count
        for n in range(self.count):
            found = set(numbers) & set(self.columns[n])
            newest = self.newest(n, length)
            assert newest <= found
            # Where a single rollout overfills a column, one transition before it may survive.
            assert len(found) <= len(newest) + 1


@settings(max_examples=80)
@given(data=st.data())
def test_what_can_be_drawn_is_what_happened_last_with_what_truly_followed(data):
    count = data.draw(st.integers(1, 3), "environments")
    capacity = data.draw(st.integers(2, 12), "capacity")
    world = World(
        count,
        next_step=data.draw(st.booleans(), "next step"),
        coarse=data.draw(st.sampled_from([2, 3, 100_000]), "coarse"),
        structured=data.draw(st.booleans(), "structured"),
    )
    generator = torch.Generator().manual_seed(0)
    buffer = ReplayBuffer(capacity)
    event = st.sampled_from([GO, GO, GO, TERMINATE, TRUNCATE])
    for _ in range(data.draw(st.integers(1, 6), "rollouts")):
        length = data.draw(st.integers(1, column(capacity, count)), "length")
        rows = st.lists(
            st.lists(event, min_size=count, max_size=count), min_size=length, max_size=length
        )
        buffer.add(world.rollout(data.draw(rows, "events")))
        world.assert_remembered_by(buffer, capacity, generator)
        if data.draw(st.booleans(), "restart"):
            world.restart()
        if data.draw(st.booleans(), "save and load"):
            copy = ReplayBuffer(capacity)
            copy.load_state_dict(saved_and_loaded(buffer.state_dict()))
            buffer = copy
            world.assert_remembered_by(buffer, capacity, generator)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def filled(capacity, count, rows, *, event=GO, structured=False):
    """A world and a buffer that has seen so many rows of it, in rollouts of up to 4."""
    world = World(count, next_step=False, coarse=100_000, structured=structured)
    buffer = ReplayBuffer(capacity)
    for first in range(0, rows, 4):
        buffer.add(world.rollout([[event] * count] * min(4, rows - first)))
    return world, buffer


def test_every_transition_is_drawn_as_often_as_any_other(generator):
    """Behind the end of the ring, with ends of both kinds in it."""
    world = World(2, next_step=True, coarse=100_000, structured=False)
    buffer = ReplayBuffer(40)
    events = [GO, GO, TERMINATE, GO, GO, GO, TRUNCATE, GO]
    for turn in range(9):
        buffer.add(world.rollout([[events[(turn + t) % 8], events[t]] for t in range(8)]))
    assert 25 < len(buffer) < 40
    drawn = buffer.sample(30_000, generator).rewards.long()
    _, counts = drawn.unique(return_counts=True)
    assert len(counts) == len(buffer)
    assert chisquare(counts.numpy()).pvalue > 1e-3
    # One draw says nothing of the next.
    pairs = (drawn[:-1] - drawn.min()) % 5 * 5 + (drawn[1:] - drawn.min()) % 5
    one = torch.bincount((drawn - drawn.min()) % 5).double() / len(drawn)
    expected = (one[:, None] * one).flatten() * len(pairs)
    assert chisquare(torch.bincount(pairs, minlength=25).numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("capacity", "count"), [(2, 1), (12, 1), (12, 3), (13, 3), (2, 64)])
def test_each_observation_is_stored_once(capacity, count, generator):
    """One slot a column more than transitions, where nothing is cut off."""
    length = column(capacity, count)
    world = World(count, next_step=False, coarse=100_000, structured=True)
    buffer = ReplayBuffer(capacity)
    for turn in range(3 * length + 5):
        buffer.add(world.rollout([[TERMINATE if turn % 5 == 4 else GO] * count]))
    assert len(buffer) == length * count
    state = buffer.state_dict()
    for leaf in optree.tree_leaves(state["observations"]):
        assert leaf.shape[:2] == (count, length + 1)
    assert buffer.sample(9, generator).observations["picture"].dtype == torch.uint8


def test_a_checkpoint_is_as_large_as_what_has_been_seen():
    """Of a buffer for 10⁹ numbers, whose memory nobody has asked for yet."""
    _, buffer = filled(1_000_000_000, 1, 8)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    assert len(file.getvalue()) < 10_000


@pytest.mark.parametrize("rows", [3, 30])
def test_a_state_is_a_copy_in_both_directions(rows, generator):
    world, buffer = filled(9, 2, rows, structured=True)
    state = buffer.state_dict()
    copy = ReplayBuffer(9)
    copy.load_state_dict(state)

    def draw(of):
        fixed = torch.Generator().manual_seed(1)
        return optree.tree_leaves(vars(of.sample(200, fixed)))

    before = draw(buffer)
    assert all(torch.equal(a, b) for a, b in zip(before, draw(copy), strict=True))
    buffer.add(world.rollout([[TRUNCATE, GO]] * 2))
    assert all(torch.equal(a, b) for a, b in zip(before, draw(copy), strict=True))
    copy.add(world.rollout([[GO, TERMINATE]] * 3))
    again = ReplayBuffer(9)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(before, draw(again), strict=True))


def test_a_state_goes_into_a_buffer_of_its_capacity_only():
    _, buffer = filled(9, 2, 3)
    with pytest.raises(ValueError, match="columns of 6 slots, this buffer of 5"):
        ReplayBuffer(8).load_state_dict(buffer.state_dict())
    with pytest.raises(ValueError, match="columns of 6 slots, this buffer of 51"):
        ReplayBuffer(100).load_state_dict(buffer.state_dict())


def test_the_state_of_an_empty_buffer_empties_another(generator):
    _, buffer = filled(9, 2, 3)
    buffer.load_state_dict(ReplayBuffer(9).state_dict())
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        buffer.sample(1, generator)


def test_what_was_drawn_stays_what_it_was(generator):
    world, buffer = filled(6, 1, 6)
    drawn = buffer.sample(50, generator)
    before = [leaf.clone() for leaf in vars(drawn).values()]
    buffer.add(world.rollout([[GO]] * 6))
    assert all(map(torch.equal, before, vars(drawn).values()))
    for leaf in vars(drawn).values():
        leaf.zero_()
    world.assert_remembered_by(buffer, 6, generator)


def test_what_was_added_stays_what_it_was(generator):
    """The buffer's copy of it, whatever becomes of the rollout."""
    world = World(2, next_step=False, coarse=100_000, structured=True)
    rollout = world.rollout([[GO, TRUNCATE], [TERMINATE, GO]])
    buffer = ReplayBuffer(8)
    buffer.add(rollout)
    observations: Any = [
        rollout.observations,
        rollout.next_observations,
        rollout.final_observations,
    ]
    for leaf in optree.tree_leaves(observations):
        leaf.zero_()
    for leaf in (rollout.actions, rollout.rewards, rollout.terminated):
        leaf.zero_()
    world.assert_remembered_by(buffer, 8, generator)


def test_a_rollout_longer_than_the_buffer_is_refused_before_anything_is_stored(generator):
    world, buffer = filled(12, 3, 4)
    with pytest.raises(UsageError, match=r"5 steps of 3 environments.*of 12 transitions; raise"):
        buffer.add(World(3, False, 100_000, False).rollout([[GO] * 3] * 5))
    world.assert_remembered_by(buffer, 12, generator)
    young = ReplayBuffer(12)
    with pytest.raises(UsageError, match="longer than the replay buffer"):
        young.add(World(1, False, 100_000, False).rollout([[GO]] * 13))
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        young.sample(1, generator)


@pytest.mark.parametrize("count", [1, 3])
def test_one_as_long_as_the_buffer_is_not_refused_for_its_time_limits(count, generator):
    """Last observations need room as well: the oldest steps give it, not the run."""
    world = World(count, next_step=False, coarse=100_000, structured=False)
    buffer = ReplayBuffer(6 * count)
    for events, kept in (([GO] * 5 + [TRUNCATE], 5), ([TRUNCATE] * 6, 3), ([GO] * 6, 6)):
        buffer.add(world.rollout([[event] * count for event in events]))
        world.assert_remembered_by(buffer, 6 * count, generator)
        assert len(buffer) == kept * count


def test_another_number_of_environments_is_refused(generator):
    world, buffer = filled(12, 3, 4)
    for count in (1, 2, 4):
        with pytest.raises(ValueError, match=f"has {count} environments, those before had 3"):
            buffer.add(World(count, False, 100_000, False).rollout([[GO] * count]))
    world.assert_remembered_by(buffer, 12, generator)


@pytest.mark.parametrize("capacity", [-1, 0, 1])
def test_a_capacity_below_two_is_refused(capacity):
    with pytest.raises(ValueError, match=f"at least 2 transitions, got {capacity}"):
        ReplayBuffer(capacity)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("length", [1, 3, 7])
def test_from_a_task_through_the_collector_every_next_observation_is_one_step_later(
    mode, length, generator
):
    """Counter shows [episode, step]. Collection starts anew at times, as after a checkpoint."""
    behaviour = Sampling(
        lambda x: Categorical(logits=torch.zeros(len(x), 2)), lambda a: a.numpy(), explore=True
    )
    vector = SyncVectorEnv([lambda: gym.make("test/Counter-v0")] * 3, autoreset_mode=mode)
    collector = RolloutCollector(vector, behaviour, seed=0, generator=generator)
    buffer = ReplayBuffer(50)
    seen_cut_off = 0
    for turn in range(60 // length):
        rollout = collector.collect(length)
        buffer.add(rollout)
        drawn = buffer.sample(500, generator)
        assert isinstance(drawn, Transitions)
        going_on = ~drawn.terminated
        step = drawn.next_observations[going_on] - drawn.observations[going_on]
        assert torch.equal(step, torch.tensor([0.0, 1.0]).expand(len(step), 2))
        odd = drawn.observations[:, 0] % 2 == 1
        assert torch.equal(drawn.terminated, odd & (drawn.observations[:, 1] == 2))
        seen_cut_off += int((drawn.next_observations[going_on][:, 1] == 5).sum())
        if turn % 6 == 5:
            collector.restart(turn)
    assert seen_cut_off > 0

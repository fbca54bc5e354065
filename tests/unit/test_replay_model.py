"""Any sequence of inserts, retries, samples, priority updates and restores against a plain model of the buffer."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.schema import sampled_from_arrow, to_record_batch
from conf.schema import ReplayConfig, ReplayMode
from replay.buffer import ReplayBuffer, ReplayFullError
from tests.fakes import make_group

CAPACITY, MAX_AGE = 14, 2
PATTERNS = ([1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0, 0], [1.0, 0.5, 0.0])  # the last: a zero advantage in an effective group


class Model:
    """What the buffer should hold, in lists."""

    def __init__(self, mode):
        self.mode, self.known, self.waiting, self.older = mode, set(), [], []
        self.waits = mode != "prioritized"  # else rows are in the table from their arrival on

    def insert(self, groups):
        new = [group for group in groups if group.group_id not in self.known]
        num_waiting = sum(len(group.trajectories) for group in [*(self.waiting if self.waits else []), *new])
        if num_waiting > CAPACITY:
            raise ReplayFullError
        self.known |= {group.group_id for group in new}
        self.waiting += new
        self.older = self.older[max(0, len(self.older) + num_waiting - CAPACITY) :]
        if not self.waits:
            self.older += [row for group in new for row in group.trajectories]

    def admits(self, group, trajectory):
        return self.mode == "none" or (group.is_effective and trajectory.advantage != 0)

    def sample(self, num_groups, version):
        """The rows that may be drawn as fresh and as older ones."""
        step, self.waiting = self.waiting[:num_groups], self.waiting[num_groups:]
        num_step = sum(len(group.trajectories) for group in step)
        if not self.waits:
            return set(), {row.trajectory_id for row in self.older}
        fresh = [row for group in step for row in group.trajectories if self.admits(group, row)]
        older = self.retire(self.older, num_step, version)
        self.older = self.retire([*older, *fresh], num_step, version)
        return {row.trajectory_id for row in fresh}, {row.trajectory_id for row in older}

    def retire(self, rows, num_step, version):
        if self.mode == "fifo":
            return rows[max(0, len(rows) - num_step // 2) :]
        return [row for row in rows if version - row.policy_version <= MAX_AGE] if self.mode == "fresh" else []

    @property
    def table(self):
        return [row.trajectory_id for row in self.older]

    @property
    def num_rows(self):
        return len(self.older) + sum(len(group.trajectories) for group in self.waiting if self.waits)


GROUP = st.tuples(st.integers(0, 7), st.integers(0, 4), st.sampled_from(PATTERNS))  # prompt, visit, rewards; repeats are retries
EVENT = st.one_of(
    st.tuples(st.just("insert"), st.lists(GROUP, max_size=3)),
    st.tuples(st.just("sample"), st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))),
    st.tuples(st.just("version"), st.integers(0, 2)),
    st.tuples(st.just("priorities"), st.integers(0, 99)),
    st.tuples(st.just("restore"), st.none()),
)


def stored(buffer):
    storage = buffer.capture().storage
    return storage, storage.gather(storage.places).column("trajectory_id").to_pylist()


def check_sample(drawn, fresh, older, *, updates, batch_size, mode):
    got = [row for shard in drawn.shards for row in sampled_from_arrow(shard)]
    if mode == "prioritized" and len(older) > 0 and not got:
        return  # nothing in the table has a priority
    assert len(got) == (updates * batch_size if fresh or older else 0)
    assert {row.trajectory.trajectory_id for row in got if row.fresh} <= fresh
    assert {row.trajectory.trajectory_id for row in got if not row.fresh} <= older
    assert all(sum(row.update == update for row in got) == (batch_size if got else 0) for update in range(updates))
    assert all(0 < row.probability <= 1 and row.age >= 0 and row.times_sampled >= 1 for row in got)
    if fresh and mode in ("none", "filter", "fresh") and updates * batch_size >= len(fresh):
        assert {row.trajectory.trajectory_id for row in got if row.fresh} == fresh  # none is left out


@pytest.mark.parametrize("mode", [mode.value for mode in ReplayMode])
@given(st.lists(EVENT, max_size=25))
@settings(max_examples=60, deadline=None)
def test_the_buffer_behaves_like_the_model(mode, events):
    config = ReplayConfig(mode=ReplayMode(mode), max_trajectories=CAPACITY, max_age=MAX_AGE)
    buffer, model, version = ReplayBuffer(config, seed=0), Model(mode), 0
    for kind, value in events:
        if kind == "insert":
            groups = {f"p{p}@{v}": make_group(f"p{p}", visit=v, rewards=r, version=version) for p, v, r in value}.values()
            batch = to_record_batch([trajectory for group in groups for trajectory in group.trajectories])
            try:
                model.insert(groups)
            except ReplayFullError:
                with pytest.raises(ReplayFullError):
                    buffer.insert(batch)
            else:
                buffer.insert(batch)
        elif kind == "sample":
            num_groups, updates, batch_size, shards = value
            request = {"num_updates": updates, "batch_size": batch_size, "num_shards": shards, "policy_version": version}
            if num_groups > len(model.waiting):
                with pytest.raises(ValueError, match="are there"):
                    buffer.sample(**request, num_groups=num_groups)
            else:
                fresh, older = model.sample(num_groups, version)
                check_sample(
                    buffer.sample(**request, num_groups=num_groups), fresh, older, updates=updates, batch_size=batch_size, mode=mode
                )
        elif kind == "version":
            version += value
        elif kind == "priorities":
            keys = np.random.default_rng(value).integers(0, 40, 5)
            storage, _ = stored(buffer)
            assert buffer.update_priorities(keys, np.full(5, 0.5)) == np.isin(keys, storage.column("key")[storage.places]).sum()
        else:
            with tempfile.TemporaryDirectory() as folder:
                buffer.snapshot(folder)
                buffer = ReplayBuffer(config, seed=1)
                buffer.restore(folder)
        assert stored(buffer)[1] == model.table
        assert (len(buffer), buffer.ready_groups) == (model.num_rows, len(model.waiting))
        assert len(buffer) <= CAPACITY
        stats = buffer.stats()
        assert stats["size"] == stats["admitted"] - stats["removed"] - stats["evicted"]


@pytest.mark.parametrize("mode", [mode.value for mode in ReplayMode if mode is not ReplayMode.prioritized])
@given(arrival=st.permutations(range(12)), cuts=st.lists(st.integers(1, 4), min_size=12, max_size=12))
@settings(max_examples=25, deadline=None)
def test_draws_depend_on_the_turns_and_not_on_the_order_of_arrival(mode, arrival, cuts):
    groups = [make_group(f"p{i % 8}", visit=i // 8, rewards=PATTERNS[i % len(PATTERNS)]) for i in range(12)]
    turns = {group.group_id: turn for turn, group in enumerate(groups)}

    def drawn(order, sizes):
        buffer, samples, waiting = ReplayBuffer(ReplayConfig(mode=ReplayMode(mode)), seed=3), [], list(order)
        for size in sizes:
            batch = [groups[turn] for turn in waiting[:size]]
            waiting = waiting[size:]
            buffer.insert(to_record_batch([trajectory for group in batch for trajectory in group.trajectories]), turns)
            while buffer.ready_groups >= 4:
                samples.append(buffer.sample(num_updates=2, batch_size=6, num_shards=2, policy_version=len(samples), num_groups=4))
        assert (len(samples), buffer.waiting_groups) == (3, 0)
        return samples

    for expected, found in zip(drawn(range(12), [12]), drawn(arrival, cuts), strict=True):
        assert all(one.equals(other) for one, other in zip(expected.shards, found.shards, strict=True))
        assert [rows.column("trajectory_id") for rows in expected.consumed] == [rows.column("trajectory_id") for rows in found.consumed]

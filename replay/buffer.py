"""The replay buffer: groups of trajectories go in, the rows of a training step come out.

Owns the order of events (insert, consume, expire, draw, retire) and the counters. Must not know Ray, the learner or the rollout actors,
and knows the modes only as a SelectionPlan. One thread at a time.

A row's life: it arrives *waiting*, with its group; the step that consumes its group sees it as *fresh*; from then on it is *older*,
until the plan's remover or the capacity lets it go. Rows are sorted by key and groups are consumed in the order of arrival, so the
three states are three runs of positions, cut at two keys.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from algorithms.schema import TRAJECTORY_SCHEMA
from conf.schema import ReplayConfig
from replay.batches import Sample, occurrences, rank_tables
from replay.groups import Arrivals, GroupSummary, InsertReceipt, read_arrivals, step_figures
from replay.plans import Draw, Pool, plan_for
from replay.snapshot import SnapshotError, read_snapshot, write_snapshot
from replay.storage import Storage

REMEMBERED_GROUPS = 65536  # ids kept to recognise a retried insert, which follows the first within minutes


class ReplayFullError(RuntimeError):
    """Rows that no step has consumed yet would exceed the capacity."""


@dataclass(kw_only=True)
class _Counters:
    groups_inserted: int = 0
    duplicate_groups: int = 0
    inserted: int = 0  # trajectories
    admitted: int = 0
    consumed_groups: int = 0
    sampled: int = 0  # draws
    removed: int = 0  # by the plan's remover
    evicted: int = 0  # by the capacity


@dataclass(kw_only=True)
class _Waiting:
    """A group that no step has consumed yet."""

    summary: GroupSummary
    end_key: int  # one past the key of its last stored row


class ReplayBuffer:
    """Selective sample replay in one process.

    Args:
        config: of the replay.
        seed: of the draws.
    """

    def __init__(self, config: ReplayConfig, *, seed: int) -> None:
        if config.max_trajectories < 1:
            raise ValueError(f"replay.max_trajectories must be at least 1, got {config.max_trajectories}")
        self._config = config
        self._plan = plan_for(
            config.mode,
            priority_exponent=config.priority_exponent,
            age_decay_steps=config.age_decay_steps,
            max_age=config.max_age,
        )
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._storage = Storage(TRAJECTORY_SCHEMA)
        self._waiting: deque[_Waiting] = deque()
        self._consumed_key = 0  # rows below it were consumed by a step
        self._known: dict[str, None] = {}  # group ids in the order of arrival
        self._counters = _Counters()

    def __len__(self) -> int:
        return len(self._storage)

    @property
    def ready_groups(self) -> int:
        """Groups, uniform ones included, that no step has consumed yet."""
        return len(self._waiting)

    def has_room(self, num_trajectories: int) -> bool:
        """Whether an insert can't fail for want of room.

        Args:
            num_trajectories: of the batch; those that the mode can't draw count too.

        Returns:
            True as well for a batch that is larger than the whole buffer, for which nobody needs to wait.
        """
        capacity, waiting = self._config.max_trajectories, len(self._storage) - self._num_consumed()
        return num_trajectories > capacity or waiting + num_trajectories <= capacity

    def insert(self, batch: pa.RecordBatch) -> InsertReceipt:
        """Take in whole rollout groups; what the mode can't draw is counted and not stored.

        Args:
            batch: of TRAJECTORY_SCHEMA, any number of groups, each with all of its trajectories. Copied.

        Returns:
            What was new. Groups that arrived before add nothing, so an insert may be retried.

        Raises:
            ValueError: when the batch has another schema or impossible values; nothing is inserted.
            ReplayFullError: when waiting rows alone would exceed ``max_trajectories``; nothing is inserted.
        """
        arrivals = read_arrivals(batch, known=self._known)
        admitted = self._plan.admits(arrivals.effective, arrivals.advantages)
        self._make_room(int(np.count_nonzero(admitted)))
        # a copy: the batch may lie in the object store, and rows that stay here for long must not pin it
        self._storage.append(
            batch.take(pa.array(arrivals.rows[admitted])),
            versions=arrivals.versions[admitted],
            priorities=np.abs(arrivals.advantages[admitted]),
        )
        self._register(arrivals, admitted)
        receipt = InsertReceipt(
            groups=len(arrivals.summaries),
            effective_groups=sum(summary.effective for summary in arrivals.summaries),
            trajectories=len(arrivals.rows),
            admitted=int(np.count_nonzero(admitted)),
            duplicate_groups=arrivals.duplicate_groups,
        )
        self._counters.groups_inserted += receipt.groups
        self._counters.duplicate_groups += receipt.duplicate_groups
        self._counters.inserted += receipt.trajectories
        self._counters.admitted += receipt.admitted
        return receipt

    def sample(self, *, num_updates: int, batch_size: int, num_shards: int, policy_version: int, num_groups: int) -> Sample:
        """Consume the oldest waiting groups and draw the rows of one training step.

        Args:
            num_updates: optimizer updates of the step, >= 1.
            batch_size: trajectories per update, >= 1.
            num_shards: ranks of the learner, >= 1.
            policy_version: of the learner; ages count from it.
            num_groups: how many waiting groups to consume, >= 1; uniform ones count.

        Returns:
            num_updates * batch_size draws, dealt to the ranks; none when no row has a learning signal.

        Raises:
            ValueError: when an argument is out of range, fewer groups are waiting, or a row is of a later version than the learner's;
                nothing is consumed.
        """
        self._check_request(num_updates, batch_size, num_shards, policy_version, num_groups)
        consumed = [self._waiting.popleft() for _ in range(num_groups)]
        summaries = [group.summary for group in consumed]
        step_trajectories = sum(summary.trajectories for summary in summaries)
        self._expire(policy_version, step_trajectories)
        num_older = self._num_consumed()
        self._consumed_key = consumed[-1].end_key
        fresh = self._pool(num_older, self._num_consumed(), policy_version)
        older = self._pool(0, num_older, policy_version)
        draw = self._plan.draw(self._rng, fresh=fresh, older=older, num_rows=num_updates * batch_size)
        shards, ages = self._deal(draw, policy_version=policy_version, batch_size=batch_size, num_shards=num_shards)
        held = self.stats()["size"]  # while the batch was drawn: in three of the modes nothing outlives its step
        self._expire(policy_version, step_trajectories)
        self._counters.consumed_groups += num_groups
        self._counters.sampled += len(draw.positions)
        num_drawn = len(draw.positions)
        stats = {
            **step_figures(summaries, policy_version=policy_version),
            **{f"replay/{name}": count for name, count in self.stats().items()},
            "replay/size": held,
            "replay/empty": float(num_drawn == 0),
            "replay/candidates": len(fresh.positions) + len(older.positions),
            "replay/drawn": num_drawn,
            "replay/drawn_distinct": len(np.unique(draw.positions)),
            "replay/fresh_fraction": float(draw.fresh.mean()) if num_drawn else 0.0,
            "replay/age_mean": float(ages.mean()) if num_drawn else 0.0,
            "replay/age_max": int(ages.max()) if num_drawn else 0,
            "replay/rows_per_update": num_drawn // num_updates,
        }
        return Sample(shards=shards, stats=stats)

    def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.floating]) -> int:
        """Set what stands for |A| in P.

        Args:
            keys: [K] as handed out with the samples; rows that have left are passed over.
            priorities: [K] finite, >= 0; 0 takes a row out of the draws by |A|^alpha.

        Returns:
            How many rows were there.

        Raises:
            ValueError: when the shapes disagree or a priority is negative or not finite; nothing is changed.
        """
        wanted, values = np.asarray(keys, dtype=np.int64), np.asarray(priorities, dtype=np.float64)
        if wanted.ndim != 1 or wanted.shape != values.shape:
            raise ValueError(f"need as many priorities as keys, one dimension; got {wanted.shape} keys, {values.shape} priorities")
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError("priorities must be finite and not negative")
        positions, found = self._storage.positions(wanted)
        self._storage.column("priority")[positions[found]] = values[found]
        return int(np.count_nonzero(found))

    def stats(self) -> dict[str, int]:
        """Tell sizes and counters since the start of the run.

        Returns:
            Name -> count; as metrics they're called "replay/" and the name.
        """
        return {
            "size": len(self._storage),
            "bytes": self._storage.num_bytes,
            "batches": self._storage.num_batches,
            "ready_groups": self.ready_groups,
            **asdict(self._counters),
        }

    def snapshot(self, folder: str | os.PathLike[str]) -> None:
        """Write everything that later draws depend on.

        Args:
            folder: used for this buffer's snapshot alone; the one in it is replaced at once or not at all.

        Raises:
            OSError: when the folder can't be written.
        """
        write_snapshot(folder, *self.capture())

    def capture(self) -> tuple[Storage, dict[str, Any]]:
        """Take the state as it is now, cheaply, for write_snapshot in another thread.

        Returns:
            A copy of the storage that shares its batches, and the rest as values that JSON can hold.
        """
        state = {
            "mode": self._config.mode.value,
            "consumed_key": self._consumed_key,
            "waiting": [{"end_key": group.end_key, "summary": asdict(group.summary)} for group in self._waiting],
            "known_groups": list(self._known),
            "counters": asdict(self._counters),
            "generator": self._rng.bit_generator.state,
        }
        return self._storage.frozen_copy(), state

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Replace the content by a snapshot's; draws go on as if there had been no interruption.

        Args:
            folder: with a snapshot.

        Raises:
            SnapshotError: when the snapshot is missing, damaged, of another schema or of another mode; nothing is changed.
            ReplayFullError: when its waiting rows alone exceed ``max_trajectories``; nothing is changed.
        """
        self.load(*read_snapshot(folder))

    def load(self, storage: Storage, state: dict[str, Any]) -> None:
        """Put a captured state in the place of this one; see restore.

        Args:
            storage: from capture or read_snapshot; the buffer's from now on.
            state: likewise.

        Raises:
            SnapshotError: when it's of another mode; nothing is changed.
            ReplayFullError: when its waiting rows alone exceed ``max_trajectories``; nothing is changed.
        """
        if state["mode"] != self._config.mode.value:
            raise SnapshotError(f"the snapshot was taken with replay.mode={state['mode']}, this run has {self._config.mode.value}")
        num_waiting = len(storage) - int(np.searchsorted(storage.column("key"), state["consumed_key"]))
        if num_waiting > self._config.max_trajectories:
            raise ReplayFullError(
                f"replay.max_trajectories={self._config.max_trajectories} can't hold the snapshot's {num_waiting} trajectories "
                f"that no step has consumed yet"
            )
        bit_generator = np.random.PCG64()
        bit_generator.state = state["generator"]
        self._rng = np.random.Generator(bit_generator)
        self._storage = storage
        self._consumed_key = state["consumed_key"]
        self._waiting = deque(_Waiting(end_key=group["end_key"], summary=GroupSummary(**group["summary"])) for group in state["waiting"])
        self._known = dict.fromkeys(state["known_groups"])
        self._counters = _Counters(**state["counters"])
        self._make_room(0)

    def _register(self, arrivals: Arrivals, admitted: NDArray[np.bool_]) -> None:
        """Queue the groups, whose stored rows have just got the newest keys, in the same order."""
        row_ends = np.cumsum([summary.trajectories for summary in arrivals.summaries], dtype=np.int64)
        stored = np.concatenate([[0], np.cumsum(admitted)])
        first_key = self._storage.next_key - int(stored[-1])
        for summary, row_end in zip(arrivals.summaries, row_ends.tolist(), strict=True):
            self._waiting.append(_Waiting(summary=summary, end_key=first_key + int(stored[row_end])))
            self._known[summary.group_id] = None
        while len(self._known) > REMEMBERED_GROUPS:
            del self._known[next(iter(self._known))]

    def _make_room(self, num_rows: int) -> None:
        """Let the oldest consumed rows go until ``num_rows`` more fit."""
        capacity, waiting = self._config.max_trajectories, len(self._storage) - self._num_consumed()
        if waiting + num_rows > capacity:
            raise ReplayFullError(
                f"replay.max_trajectories={capacity} can't hold {num_rows} more trajectories beside {waiting} "
                f"of {self.ready_groups} groups that no step has consumed yet"
            )
        excess = len(self._storage) + num_rows - capacity
        if excess > 0:
            self._counters.evicted += self._storage.remove_oldest(excess)

    def _num_consumed(self) -> int:
        """Rows that a step has consumed; they hold the first positions."""
        return int(np.searchsorted(self._storage.column("key"), self._consumed_key))

    def _expire(self, policy_version: int, step_trajectories: int) -> None:
        """Let the plan's remover have what it wants of the consumed rows."""
        num_consumed = self._num_consumed()
        leaving = np.zeros(len(self._storage), dtype=bool)
        ages = policy_version - self._storage.column("version")[:num_consumed]
        leaving[:num_consumed] = self._plan.remover.expired(ages, step_trajectories=step_trajectories)
        self._counters.removed += self._storage.remove(leaving)

    def _pool(self, start: int, end: int, policy_version: int) -> Pool:
        versions, priorities = self._storage.column("version")[start:end], self._storage.column("priority")[start:end]
        return Pool(positions=np.arange(start, end), priorities=priorities, ages=policy_version - versions)

    def _deal(self, draw: Draw, *, policy_version: int, batch_size: int, num_shards: int) -> tuple[list[pa.Table], NDArray[np.int64]]:
        """Count the draws on the rows and make the ranks' tables."""
        column = self._storage.column
        distinct, indices = np.unique(draw.positions, return_inverse=True)
        draws = {
            "key": column("key")[draw.positions],
            "probability": draw.probabilities,
            "table_size": draw.table_sizes,
            "age": policy_version - column("version")[draw.positions],
            "times_sampled": column("times_sampled")[draw.positions] + occurrences(indices),
            "fresh": draw.fresh,
            "update": np.arange(len(draw.positions)) // batch_size,
        }
        np.add.at(column("times_sampled"), draw.positions, 1)
        return rank_tables(self._storage.gather(distinct), indices, draws, num_shards=num_shards), draws["age"]

    def _check_request(self, num_updates: int, batch_size: int, num_shards: int, policy_version: int, num_groups: int) -> None:
        if min(num_updates, batch_size, num_shards, num_groups) < 1:
            raise ValueError(
                f"num_updates, batch_size, num_shards and num_groups must be at least 1, "
                f"got {num_updates}, {batch_size}, {num_shards}, {num_groups}"
            )
        if num_groups > self.ready_groups:
            raise ValueError(f"{num_groups} fresh groups were asked for, {self.ready_groups} are there")
        newest = max(self._waiting[i].summary.version_max for i in range(num_groups))
        newest = max(newest, int(self._storage.column("version")[: self._num_consumed()].max(initial=newest)))
        if newest > policy_version:
            raise ValueError(
                f"a trajectory was sampled by policy version {newest}, the learner is at {policy_version}: "
                f"replay and learner aren't of the same run or checkpoint"
            )

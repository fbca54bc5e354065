"""The replay buffer: groups of trajectories go in, the rows of a training step come out.

Owns the order of events (insert, consume, expire, draw, retire) and the counters. Must not know Ray, the learner or the rollout actors,
and knows the modes only as a SelectionPlan. One thread at a time.

A row's life: it arrives *waiting*, with its group; the step that consumes its group moves it into the table and sees it as *fresh*; from
then on it is *older*, until the plan's remover or the capacity lets it go. Groups are consumed turn by turn, so the table's keys, and with
them the draws, don't depend on when a group arrived.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from algorithms.schema import TRAJECTORY_SCHEMA
from conf.schema import ReplayConfig
from replay.batches import Sample, occurrences, rank_tables
from replay.groups import Arrivals, InsertReceipt, drop_figures, read_arrivals, step_figures
from replay.plans import Draw, Pool, plan_for
from replay.snapshot import SnapshotError, read_snapshot, write_snapshot
from replay.storage import Storage
from replay.waiting import WaitingGroup, WaitingGroups

REMEMBERED_GROUPS = 65536  # ids kept to recognise a retried insert, which follows the first within minutes


class ReplayFullError(RuntimeError):
    """Rows that no step has consumed yet would exceed the capacity."""


@dataclass(kw_only=True)
class _Counters:
    groups_inserted: int = 0
    duplicate_groups: int = 0
    inserted: int = 0  # trajectories
    admitted: int = 0  # of the consumed ones, those that entered the table
    consumed_groups: int = 0
    dropped_groups: int = 0  # of them, those past the staleness bound
    sampled: int = 0  # draws
    removed: int = 0  # by the plan's remover
    evicted: int = 0  # by the capacity


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
        self._waiting = WaitingGroups()
        self._known: dict[str, None] = {}  # group ids in the order of arrival
        self._counters = _Counters()

    def __len__(self) -> int:
        return len(self._storage) + self._waiting.num_rows

    @property
    def ready_groups(self) -> int:
        """Groups, uniform ones included, that no step has consumed yet and that wait for no earlier turn."""
        return self._waiting.ready

    @property
    def waiting_groups(self) -> int:
        """Groups that no step has consumed yet, those behind a missing turn included."""
        return len(self._waiting)

    @property
    def next_missing_turn(self) -> int:
        """The first turn that no group has come for."""
        return self._waiting.next_turn + self._waiting.ready

    def has_room(self, num_trajectories: int) -> bool:
        """Whether an insert can't fail for want of room.

        Args:
            num_trajectories: of the batch; those that the mode can't draw count too.

        Returns:
            True as well for a batch that is larger than the whole buffer, for which nobody needs to wait.
        """
        capacity = self._config.max_trajectories
        return num_trajectories > capacity or self._waiting.num_rows + num_trajectories <= capacity

    def insert(self, batch: pa.RecordBatch, turns: Mapping[str, int] | None = None) -> InsertReceipt:
        """Take in whole rollout groups, which wait for the step that consumes them.

        Args:
            batch: of TRAJECTORY_SCHEMA, any number of groups, each with all of its trajectories. Copied.
            turns: by group id, the place of each group in the order of consumption, from 0 without gaps; None: behind all others, that is
                in the order of arrival.

        Returns:
            What was new. Groups that arrived before add nothing, so an insert may be retried.

        Raises:
            ValueError: when the batch has another schema or impossible values, or a turn is missing or taken by another group; nothing
                is inserted.
            ReplayFullError: when waiting rows alone would exceed ``max_trajectories``; nothing is inserted.
        """
        arrivals = read_arrivals(batch, known=self._known)
        own_turns = self._turns_of(arrivals, turns)
        self._make_room(len(arrivals.rows))
        # a copy: the batch may lie in the object store, and rows that stay here for long must not pin it
        self._queue(batch.take(pa.array(arrivals.rows)), arrivals, own_turns)
        self._remember(summary.group_id for summary in arrivals.summaries)
        receipt = InsertReceipt(
            groups=len(arrivals.summaries),
            effective_groups=sum(summary.effective for summary in arrivals.summaries),
            trajectories=len(arrivals.rows),
            admitted=int(np.count_nonzero(self._plan.admits(arrivals.effective, arrivals.advantages))),
            duplicate_groups=arrivals.duplicate_groups,
        )
        self._counters.groups_inserted += receipt.groups
        self._counters.duplicate_groups += receipt.duplicate_groups
        self._counters.inserted += receipt.trajectories
        return receipt

    def sample(
        self,
        *,
        num_updates: int,
        batch_size: int,
        num_shards: int,
        policy_version: int,
        num_groups: int,
        max_staleness: int | None = None,
    ) -> Sample:
        """Consume the waiting groups whose turn it is and draw the rows of one training step.

        Args:
            num_updates: optimizer updates of the step, >= 1.
            batch_size: trajectories per update, >= 1.
            num_shards: ranks of the learner, >= 1.
            policy_version: of the learner; ages count from it.
            num_groups: how many waiting groups to consume, >= 1; uniform ones count.
            max_staleness: consumed groups with an older token than this many versions are counted and never drawn; None: no bound.

        Returns:
            num_updates * batch_size draws, dealt to the ranks; none when no row has a learning signal.

        Raises:
            ValueError: when an argument is out of range, fewer groups are ready, or a row is of a later version than the learner's;
                nothing is consumed.
        """
        self._check_request(num_updates, batch_size, num_shards, policy_version, num_groups)
        consumed = self._waiting.take(num_groups)
        summaries = [group.summary for group in consumed]
        step_trajectories = sum(summary.trajectories for summary in summaries)
        self._expire(policy_version, step_trajectories)
        num_older = len(self._storage)
        oldest_allowed = policy_version - (np.inf if max_staleness is None else max_staleness)
        dropped = [group.summary for group in consumed if group.summary.version_min < oldest_allowed]
        self._admit([group for group in consumed if group.summary.version_min >= oldest_allowed])
        fresh = self._pool(num_older, len(self._storage), policy_version)
        older = self._pool(0, num_older, policy_version)
        draw = self._plan.draw(self._rng, fresh=fresh, older=older, num_rows=num_updates * batch_size)
        shards, ages = self._deal(draw, policy_version=policy_version, batch_size=batch_size, num_shards=num_shards)
        held = self.stats()["size"]  # while the batch was drawn: in three of the modes nothing outlives its step
        self._expire(policy_version, step_trajectories)
        self._counters.consumed_groups += num_groups
        self._counters.dropped_groups += len(dropped)
        self._counters.sampled += len(draw.positions)
        num_drawn = len(draw.positions)
        stats = {
            **step_figures(summaries, policy_version=policy_version),
            **drop_figures(summaries, dropped),
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
        return Sample(shards=shards, stats=stats, consumed=[group.rows for group in consumed])

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
            "bytes": self._storage.num_bytes + self._waiting.num_bytes,
            "batches": self._storage.num_batches,
            "ready_groups": self.ready_groups,
            "waiting_groups": self.waiting_groups,
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

    def capture(self) -> tuple[Storage, Sequence[pa.RecordBatch], dict[str, Any]]:
        """Take the state as it is now, cheaply, for write_snapshot in another thread.

        Returns:
            A copy of the storage that shares its batches, the waiting groups' rows, and the rest as values that JSON can hold.
        """
        waiting = self._waiting.all()
        state = {
            "mode": self._config.mode.value,
            "next_turn": self._waiting.next_turn,
            "turns": {group.summary.group_id: group.turn for group in waiting},
            "known_groups": list(self._known),
            "counters": asdict(self._counters),
            "generator": self._rng.bit_generator.state,
        }
        return self._storage.frozen_copy(), [group.rows for group in waiting], state

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Replace the content by a snapshot's; draws go on as if there had been no interruption.

        Args:
            folder: with a snapshot.

        Raises:
            SnapshotError: when the snapshot is missing, damaged, of another schema or of another mode; nothing is changed.
            ReplayFullError: when its waiting rows alone exceed ``max_trajectories``; nothing is changed.
        """
        self.load(*read_snapshot(folder))

    def load(self, storage: Storage, waiting: Sequence[pa.RecordBatch], state: dict[str, Any]) -> None:
        """Put a captured state in the place of this one; see restore.

        Args:
            storage: from capture or read_snapshot; the buffer's from now on.
            waiting: likewise.
            state: likewise.

        Raises:
            SnapshotError: when it's of another mode; nothing is changed.
            ReplayFullError: when its waiting rows alone exceed ``max_trajectories``; nothing is changed.
        """
        if state["mode"] != self._config.mode.value:
            raise SnapshotError(f"the snapshot was taken with replay.mode={state['mode']}, this run has {self._config.mode.value}")
        num_waiting = sum(rows.num_rows for rows in waiting)
        if num_waiting > self._config.max_trajectories:
            raise ReplayFullError(
                f"replay.max_trajectories={self._config.max_trajectories} can't hold the snapshot's {num_waiting} trajectories "
                f"that no step has consumed yet"
            )
        bit_generator = np.random.PCG64()
        bit_generator.state = state["generator"]
        self._rng = np.random.Generator(bit_generator)
        self._storage = storage
        self._waiting = WaitingGroups(next_turn=state["next_turn"])
        for rows in waiting:
            arrivals = read_arrivals(rows, known=())
            self._queue(rows, arrivals, [state["turns"][summary.group_id] for summary in arrivals.summaries])
        self._known = dict.fromkeys(state["known_groups"])
        self._counters = _Counters(**state["counters"])
        self._make_room(0)

    def _turns_of(self, arrivals: Arrivals, turns: Mapping[str, int] | None) -> list[int]:
        """The turn of each new group."""
        names = [summary.group_id for summary in arrivals.summaries]
        if turns is None:
            return list(range(self._waiting.end_turn, self._waiting.end_turn + len(names)))
        if missing := [name for name in names if name not in turns]:
            raise ValueError(f"groups without a turn: {missing[:3]}")
        found = [turns[name] for name in names]
        for turn, name in zip(found, names, strict=True):
            owner = self._waiting.taken_by(turn)
            if owner is not None or turn < self._waiting.next_turn or found.count(turn) > 1:
                raise ValueError(f"group {name} comes for turn {turn}, which is {f'taken by {owner}' if owner else 'over or given twice'}")
        return found

    def _queue(self, rows: pa.RecordBatch, arrivals: Arrivals, turns: Sequence[int]) -> None:
        """Let groups wait; the rows are the arrivals', in their order."""
        start = 0
        for summary, turn in zip(arrivals.summaries, turns, strict=True):
            end = start + summary.trajectories
            self._waiting.add(
                WaitingGroup(
                    turn=turn,
                    summary=summary,
                    rows=rows.slice(start, end - start),
                    versions=arrivals.versions[start:end],
                    advantages=arrivals.advantages[start:end],
                )
            )
            start = end

    def _remember(self, group_ids: Iterable[str]) -> None:
        self._known.update(dict.fromkeys(group_ids))
        while len(self._known) > REMEMBERED_GROUPS:
            del self._known[next(iter(self._known))]

    def _admit(self, consumed: Sequence[WaitingGroup]) -> None:
        """Move what the mode can draw of a step's groups into the table, as one batch."""
        if not consumed:
            return
        effective = np.repeat([group.summary.effective for group in consumed], [group.rows.num_rows for group in consumed])
        advantages = np.concatenate([group.advantages for group in consumed])
        admitted = self._plan.admits(effective, advantages)
        rows = pa.concat_batches([group.rows for group in consumed]).take(pa.array(np.flatnonzero(admitted)))
        versions = np.concatenate([group.versions for group in consumed])
        self._storage.append(rows, versions=versions[admitted], priorities=np.abs(advantages[admitted]))
        self._counters.admitted += rows.num_rows

    def _make_room(self, num_rows: int) -> None:
        """Let the oldest consumed rows go until ``num_rows`` more fit."""
        capacity, waiting = self._config.max_trajectories, self._waiting.num_rows
        if waiting + num_rows > capacity:
            raise ReplayFullError(
                f"replay.max_trajectories={capacity} can't hold {num_rows} more trajectories beside {waiting} "
                f"of {self.waiting_groups} groups that no step has consumed yet"
            )
        excess = len(self) + num_rows - capacity
        if excess > 0:
            self._counters.evicted += self._storage.remove_oldest(excess)

    def _expire(self, policy_version: int, step_trajectories: int) -> None:
        """Let the plan's remover have what it wants."""
        ages = policy_version - self._storage.column("version")
        self._counters.removed += self._storage.remove(self._plan.remover.expired(ages, step_trajectories=step_trajectories))

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
        newest = max(group.summary.version_max for group in self._waiting.peek(num_groups))
        newest = int(self._storage.column("version").max(initial=newest))
        if newest > policy_version:
            raise ValueError(
                f"a trajectory was sampled by policy version {newest}, the learner is at {policy_version}: "
                f"replay and learner aren't of the same run or checkpoint"
            )

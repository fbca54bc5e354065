"""Groups that no step has consumed yet, each with its turn.

Owns the order of consumption: step after step takes the next turns, whenever their groups arrived. Must not know the table, draws or Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay.groups import Arrivals, GroupSummary


@dataclass(frozen=True, kw_only=True)
class WaitingGroup:
    """A group with all of its rows, those without a signal included."""

    turn: int
    summary: GroupSummary
    batch: pa.RecordBatch  # of TRAJECTORY_SCHEMA, that holds the group's rows
    start: int  # the first of them
    serial: int  # its number in the order of arrival; the others follow
    versions: NDArray[np.int64]  # [G] the oldest of each row
    advantages: NDArray[np.float64]  # [G]
    tokens: NDArray[np.int64]  # [G] of prompt and response
    num_bytes: int  # of the rows

    @property
    def rows(self) -> pa.RecordBatch:
        """[G] trajectories; cutting them out costs more than all else here, so it's done when someone wants them."""
        return self.batch.slice(self.start, self.summary.trajectories)

    @property
    def serials(self) -> NDArray[np.int64]:
        """[G] of the rows."""
        return np.arange(self.serial, self.serial + self.summary.trajectories)


@dataclass(frozen=True, kw_only=True)
class ConsumedRows:
    """All rows of consumed groups, group by group."""

    rows: pa.RecordBatch  # [R] of TRAJECTORY_SCHEMA
    effective: NDArray[np.bool_]  # [R] whether the row's group is
    versions: NDArray[np.int64]  # [R] the oldest of each row
    advantages: NDArray[np.float64]  # [R]
    tokens: NDArray[np.int64]  # [R] of prompt and response
    serials: NDArray[np.int64]  # [R] number of each row in the order of arrival

    @classmethod
    def arrived(cls, rows: pa.RecordBatch, arrivals: Arrivals, *, first_serial: int) -> ConsumedRows:
        """Take rows as they came.

        Args:
            rows: those of the arrivals, in their order.
            arrivals: what is known of them.
            first_serial: number of the first row.

        Returns:
            Both.
        """
        return cls(
            rows=rows,
            effective=arrivals.effective,
            versions=arrivals.versions,
            advantages=arrivals.advantages,
            tokens=arrivals.tokens,
            serials=np.arange(first_serial, first_serial + rows.num_rows),
        )

    @classmethod
    def together(cls, groups: Sequence[WaitingGroup]) -> ConsumedRows:
        """Put groups together.

        Args:
            groups: at least one.

        Returns:
            Their rows, in one batch.
        """
        return cls(
            rows=pa.concat_batches([group.rows for group in groups]),
            effective=np.repeat([group.summary.effective for group in groups], [group.summary.trajectories for group in groups]),
            versions=np.concatenate([group.versions for group in groups]),
            advantages=np.concatenate([group.advantages for group in groups]),
            tokens=np.concatenate([group.tokens for group in groups]),
            serials=np.concatenate([group.serials for group in groups]),
        )


class WaitingGroups:
    """Takes groups in any order and gives them out turn by turn.

    With numbered turns, what a step consumes depends on the order in which prompts were issued and not on how long each took: slow groups
    are not overtaken, so none gets staler than admission allows, and two runs of one seed consume the same groups in the same steps.
    """

    def __init__(self, next_turn: int = 0) -> None:
        self._groups: dict[int, WaitingGroup] = {}
        self._next_turn = next_turn
        self._gap = next_turn  # the first turn from next_turn on that has not arrived
        self._end = next_turn  # one past the highest turn that was seen
        self._num_rows = 0
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def next_turn(self) -> int:
        """The turn that is consumed next; those before were."""
        return self._next_turn

    @property
    def end_turn(self) -> int:
        """One past the highest turn that was seen: where a group that comes without a turn is placed."""
        return self._end

    @property
    def ready(self) -> int:
        """Groups that can be consumed without waiting for one that is still missing."""
        return self._gap - self._next_turn

    @property
    def num_rows(self) -> int:
        """Trajectories of all waiting groups."""
        return self._num_rows

    @property
    def num_bytes(self) -> int:
        """Their payload."""
        return self._num_bytes

    def taken_by(self, turn: int) -> str | None:
        """Who waits at a turn.

        Args:
            turn: >= 0.

        Returns:
            The group's id; None when the turn is open or over.
        """
        group = self._groups.get(turn)
        return None if group is None else group.summary.group_id

    def add(self, group: WaitingGroup) -> None:
        """Let a group wait for its turn.

        Args:
            group: whose turn is neither over nor taken.

        Raises:
            ValueError: when it is.
        """
        if group.turn < self._next_turn or group.turn in self._groups:
            raise ValueError(f"turn {group.turn} of group {group.summary.group_id} is over or taken; the next one is {self._next_turn}")
        self._groups[group.turn] = group
        self._num_rows += group.summary.trajectories
        self._num_bytes += group.num_bytes
        self._end = max(self._end, group.turn + 1)
        while self._gap in self._groups:
            self._gap += 1

    def peek(self, num_groups: int) -> list[WaitingGroup]:
        """Look at the groups that are next.

        Args:
            num_groups: at most ``ready``.

        Returns:
            They, turn by turn.
        """
        return [self._groups[turn] for turn in range(self._next_turn, self._next_turn + num_groups)]

    def take(self, num_groups: int) -> list[WaitingGroup]:
        """Consume the groups that are next.

        Args:
            num_groups: at most ``ready``.

        Returns:
            They, turn by turn.
        """
        taken = self.peek(num_groups)
        for group in taken:
            del self._groups[group.turn]
            self._num_rows -= group.summary.trajectories
            self._num_bytes -= group.num_bytes
        self._next_turn += num_groups
        return taken

    def skip(self, num_groups: int) -> None:
        """Let the next turns be over, of groups that needn't wait; nothing waits now.

        Args:
            num_groups: how many turns.
        """
        self._next_turn += num_groups
        self._gap, self._end = self._next_turn, max(self._end, self._next_turn)

    def take_through(self, end_turn: int) -> list[WaitingGroup]:
        """Consume the groups before a turn, whether or not all of them are there.

        Args:
            end_turn: one past the last turn that is over then.

        Returns:
            Those that are there, turn by turn.
        """
        taken = []
        while self._next_turn < end_turn:
            if self._next_turn in self._groups:
                self._gap = max(self._gap, self._next_turn + 1)
                taken += self.take(1)
            else:
                self._next_turn += 1
        self._gap, self._end = max(self._gap, self._next_turn), max(self._end, self._next_turn)
        while self._gap in self._groups:
            self._gap += 1
        return taken

    def all(self) -> list[WaitingGroup]:
        """Every waiting group, turn by turn."""
        return [self._groups[turn] for turn in sorted(self._groups)]

"""The door of the buffer: what is checked and copied of a batch that arrives, and the groups that wait behind it.

Owns turns and the ids of the groups that came. Must not know the table, draws or Ray.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from algorithms.schema import TRAJECTORY_SCHEMA
from replay.groups import Arrivals, GroupSummary, read_arrivals, take_rows
from replay.images import check_images
from replay.pages import PAGES, encoded_in_pages
from replay.waiting import ConsumedRows, WaitingGroup, WaitingGroups

REMEMBERED_GROUPS = 65536  # ids kept to recognise a retried insert, which follows the first within minutes


@dataclass(frozen=True, kw_only=True)
class Written:
    """A record of a journal."""

    file: int  # see whereabouts
    offset: int  # bytes


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Rows at the door, checked on their own and copied."""

    arrivals: Arrivals
    encoded: pa.Buffer  # the rows as one Arrow IPC message, which owns their memory
    rows: pa.RecordBatch  # the same, group by group; they share the message's memory
    images: Mapping[str, bytes]  # by SHA-256, those that come with the rows
    written: Written | None = None  # where a journal holds the message already

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows and of the images."""
        return self.encoded.size + sum(map(len, self.images.values()))

    @property
    def num_unwritten_bytes(self) -> int:
        """Of them, those that no journal holds yet."""
        return self.num_bytes if self.written is None else self.num_bytes - self.encoded.size


@dataclass(frozen=True, kw_only=True)
class Admitted(Prepared):
    """New groups that may be inserted, and are not yet."""

    turns: list[int]  # of the groups


def prepare(batch: pa.RecordBatch, images: Mapping[str, bytes]) -> Prepared:
    """Check rows on their own and copy them; nothing else needs to stand still meanwhile.

    Args:
        batch: of TRAJECTORY_SCHEMA, whole groups.
        images: bytes by SHA-256.

    Returns:
        All groups of the batch.

    Raises:
        ValueError: when the batch has another schema or impossible values, or an image isn't that of its hash.
    """
    check_images(images)
    return _prepared(batch, read_arrivals(batch, known=()), images)


def _prepared(batch: pa.RecordBatch, arrivals: Arrivals, images: Mapping[str, bytes]) -> Prepared:
    # a copy: the batch may lie in the object store, and rows that stay here for long must not pin it
    encoded = encoded_in_pages(take_rows(batch, arrivals.rows), PAGES)
    return Prepared(arrivals=arrivals, encoded=encoded, rows=pa.ipc.read_record_batch(encoded, TRAJECTORY_SCHEMA), images=images)


class Intake:
    """Groups on their way into the table."""

    def __init__(self) -> None:
        self.waiting = WaitingGroups()
        self.arrived: deque[GroupSummary] = deque(maxlen=REMEMBERED_GROUPS)  # in the table already, for the next step's figures
        self._known: dict[str, None] = {}  # group ids in the order of arrival
        self._next_serial = 0  # rows are numbered as they arrive

    @property
    def next_serial(self) -> int:
        """The number that the next row to arrive gets."""
        return self._next_serial

    def admit(self, prepared: Prepared, turns: Mapping[str, int] | None) -> Admitted:
        """Choose the groups that are new and give them their turns, without a change.

        Args:
            prepared: of prepare.
            turns: by group id; None: behind all others.

        Returns:
            What would be inserted.

        Raises:
            ValueError: when a turn is missing or taken by another group.
        """
        if any(summary.group_id in self._known for summary in prepared.arrivals.summaries):
            rows = prepared.rows
            prepared = _prepared(rows, read_arrivals(rows, known=self._known), prepared.images)
        return Admitted(**vars(prepared), turns=self._turns_of(prepared.arrivals, turns))

    def queue(self, admitted: Admitted) -> None:
        """Let admitted groups wait for their turns.

        Args:
            admitted: of admit, since when nothing else was queued.
        """
        self._wait(admitted.rows, admitted.arrivals, admitted.turns, self._next_serial)
        self._remember(admitted)

    def is_next(self, admitted: Admitted) -> bool:
        """Tell whether admitted groups could be consumed at once, turn by turn in the order of their rows.

        Args:
            admitted: of admit, since when nothing else was queued.

        Returns:
            False when others wait or a turn is missing.
        """
        first = self.waiting.next_turn
        return not len(self.waiting) and admitted.turns == list(range(first, first + len(admitted.turns)))

    def pass_on(self, admitted: Admitted) -> ConsumedRows:
        """Consume admitted groups as they came, as if they had been queued before; they needn't be taken apart and put together again.

        Args:
            admitted: groups that are next.

        Returns:
            Their rows.
        """
        self.waiting.skip(len(admitted.turns))
        consumed = ConsumedRows.arrived(admitted.rows, admitted.arrivals, first_serial=self._next_serial)
        self._remember(admitted)
        return consumed

    def _remember(self, admitted: Admitted) -> None:
        self._next_serial += len(admitted.arrivals.rows)
        self._known.update(dict.fromkeys(summary.group_id for summary in admitted.arrivals.summaries))
        # at once: a dict that begins with what was deleted is searched from there for its first key
        for name in list(itertools.islice(self._known, max(len(self._known) - REMEMBERED_GROUPS, 0))):
            del self._known[name]

    def state(self) -> dict[str, Any]:
        """The turns and ids, as JSON can hold them."""
        return {
            "next_turn": self.waiting.next_turn,
            "turns": {group.summary.group_id: group.turn for group in self.waiting.all()},
            "arrived": list(self.arrived),
            "known_groups": list(self._known),
        }

    @classmethod
    def restore(cls, waiting: Sequence[tuple[pa.RecordBatch, int]], state: Mapping[str, Any], *, next_serial: int) -> Intake:
        """Bring back what was saved.

        Args:
            waiting: rows of the groups that waited, and the number of the first row of each.
            state: of the former intake.
            next_serial: of the former intake.

        Returns:
            Its equal.
        """
        intake = cls()
        intake.waiting = WaitingGroups(next_turn=state["next_turn"])
        for rows, serial in waiting:
            arrivals = read_arrivals(rows, known=())
            intake._wait(rows, arrivals, [state["turns"][summary.group_id] for summary in arrivals.summaries], serial)
        intake.arrived.extend(GroupSummary(*summary) for summary in state["arrived"])
        intake._next_serial = next_serial
        intake._known = dict.fromkeys(state["known_groups"])
        return intake

    def _turns_of(self, arrivals: Arrivals, turns: Mapping[str, int] | None) -> list[int]:
        """The turn of each new group."""
        names = [summary.group_id for summary in arrivals.summaries]
        if turns is None:
            return list(range(self.waiting.end_turn, self.waiting.end_turn + len(names)))
        if missing := [name for name in names if name not in turns]:
            raise ValueError(f"groups without a turn: {missing[:3]}")
        found = [turns[name] for name in names]
        for turn, name in zip(found, names, strict=True):
            owner = self.waiting.taken_by(turn)
            if owner is not None or turn < self.waiting.next_turn or found.count(turn) > 1:
                raise ValueError(f"group {name} comes for turn {turn}, which is {f'taken by {owner}' if owner else 'over or given twice'}")
        return found

    def _wait(self, rows: pa.RecordBatch, arrivals: Arrivals, turns: Sequence[int], serial: int) -> None:
        """Queue groups; the rows are the arrivals', in their order."""
        start = 0
        row_bytes = -(-rows.nbytes // max(rows.num_rows, 1))
        for summary, turn in zip(arrivals.summaries, turns, strict=True):
            end = start + summary.trajectories
            self.waiting.add(
                WaitingGroup(
                    turn=turn,
                    summary=summary,
                    batch=rows,
                    start=start,
                    serial=serial + start,
                    versions=arrivals.versions[start:end],
                    advantages=arrivals.advantages[start:end],
                    tokens=arrivals.tokens[start:end],
                    num_bytes=row_bytes * summary.trajectories,
                )
            )
            start = end

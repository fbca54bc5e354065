"""The batches that hold the wide columns of the rows, and what is known of their bytes.

Owns the batches: when one goes, which are too empty or too small, and the memory that rows move to. Must not know what the columns
mean, keys, places, draws or Ray. A batch is dear, whatever it holds: some ten kilobytes of Arrow's objects. So batches of a few rows, as
they come from single inserts, are put together when there are enough of them; larger ones stay as they came.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay.pages import PAGES, Front
from replay.wide import WideBatch, WideSelection, hold

SMALL_BYTES = 2**20  # of a batch that is put together with others,
TOGETHER_BYTES = 4 * 2**20  # once they have so many bytes
TOGETHER_BATCHES = 256  # or are so many


class WideBatches:
    """Batches by number; rows are known by the number of their batch, their row in it and their spans (wide.hold)."""

    def __init__(self) -> None:
        self._batches: dict[int, WideBatch] = {}
        self._next_number = 0
        self._all_joined = True  # every batch that was ever held, see WideBatch
        self._small: list[int] = []  # the small ones since the last time that some were put together
        self._small_bytes = 0
        self.held_bytes = 0
        self.dead_bytes = 0  # of the held ones, those of rows that left

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def too_many_small(self) -> bool:
        """Whether the small batches should be put together."""
        return self._small_bytes >= TOGETHER_BYTES or len(self._small) >= TOGETHER_BATCHES

    def hold(self, batch: pa.RecordBatch, *, stays: bool = False) -> tuple[int, NDArray[np.int32], int]:
        """Take a batch in.

        Args:
            batch: R >= 1 rows of C columns, which own their memory.
            stays: it won't be put together with others, though it may be small.

        Returns:
            Its number, [R, C, 2] the rows' spans, and its bytes.
        """
        held, spans = hold(batch)
        number = self._next_number
        self._next_number += 1
        self._batches[number] = held
        self._all_joined = self._all_joined and held.is_joined
        self.held_bytes += held.num_bytes
        if held.num_bytes < SMALL_BYTES and not stays:
            self._small.append(number)
            self._small_bytes += held.num_bytes
        return number, spans, held.num_bytes

    def lose(self, numbers: NDArray[np.int64]) -> None:
        """Note that rows left; a batch goes with its last row.

        Args:
            numbers: [K] of their batches.
        """
        found, counts = np.unique(numbers, return_counts=True)
        for number, count in zip(found.tolist(), counts.tolist(), strict=True):
            batch = self._batches[number]
            self.dead_bytes -= batch.dead_bytes
            batch.num_alive -= count
            self.dead_bytes += batch.dead_bytes
            if batch.num_alive == 0:
                self.drop([number])

    def dead_bytes_of(self, number: int) -> int:
        """What rows that left hold of a batch."""
        return self._batches[number].dead_bytes

    def drop(self, numbers: list[int]) -> None:
        """Let go of batches, whose rows have left or moved."""
        for number in numbers:
            batch = self._batches.pop(number)
            self.held_bytes -= batch.num_bytes
            self.dead_bytes -= batch.dead_bytes

    def emptiest(self, excess: float) -> list[int]:
        """Choose batches.

        Args:
            excess: bytes of rows that left, which the chosen ones hold together at least, if all hold so many.

        Returns:
            Their numbers, the emptiest first.
        """
        chosen: list[int] = []
        alive = {number: batch.num_alive / batch.data.num_rows for number, batch in self._batches.items()}
        for number in sorted(alive, key=lambda number: (alive[number], number)):
            if excess <= 0:
                break
            excess -= self._batches[number].dead_bytes
            chosen.append(number)
        return chosen

    def take_small(self) -> list[int]:
        """Take the small batches that are there, which are to be put together; the next ones are counted anew.

        Returns:
            Their numbers, rising.
        """
        small = [number for number in self._small if number in self._batches]
        self._small, self._small_bytes = [], 0
        return small

    def find(self, numbers: NDArray[np.int64], rows: NDArray[np.int64], spans: NDArray[np.int32]) -> WideSelection:
        """Look rows up, to be copied out later or in another thread.

        Args:
            numbers: [K >= 1] of the rows' batches.
            rows: [K] in their batches.
            spans: [K, C, 2] of hold.

        Returns:
            What reads them.
        """
        # neighbours of one batch are copied together: the cost of reading is the number of runs
        starts = np.flatnonzero(np.concatenate(([True], (numbers[1:] != numbers[:-1]) | (rows[1:] - rows[:-1] != 1))))
        return WideSelection(
            batches=[self._batches[number] for number in numbers[starts].tolist()],
            rows=rows[starts].tolist(),
            starts=starts,
            spans=spans,
            all_joined=self._all_joined,
        )

    def keep_only(self, numbers: NDArray[np.int64]) -> None:
        """Let go of the memory of all others, which nobody will read any more."""
        needed = set(np.unique(numbers).tolist())
        self._batches = {number: batch for number, batch in self._batches.items() if number in needed}

    def copy(self) -> WideBatches:
        """Copy what can change and share the batches' rows, which can't."""
        copy = WideBatches()
        for name, value in vars(self).items():
            setattr(copy, name, value)
        copy._batches = {number: batch.copy() for number, batch in self._batches.items()}
        copy._small = list(self._small)
        return copy


def in_pages(found: WideSelection) -> list[pa.Array]:
    """Copy rows into memory that goes back to the system, or to other rows, as a whole.

    Args:
        found: the rows.

    Returns:
        Their columns.
    """
    num_bytes = found.num_bytes
    front = Front(memoryview(PAGES.take(num_bytes + Front.SLACK_BYTES * len(found.batches[0].parts))))
    return found.read(front.take)


def in_lots(rows: NDArray[np.int64], row_bytes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Share rows out among new batches.

    Args:
        rows: [N] in the order in which they will lie.
        row_bytes: [N] of each.

    Returns:
        Runs of the rows, of about TOGETHER_BYTES each.
    """
    lots = np.cumsum(row_bytes) // TOGETHER_BYTES
    return np.split(rows, np.flatnonzero(np.diff(lots)) + 1) if len(rows) else []

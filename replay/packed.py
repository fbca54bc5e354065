"""Narrow columns of the rows, in few batches however many small ones they came in.

Owns the memory of these columns and where each key's row is. Must not know what the columns mean, places, draws or Ray.

Arrow takes scattered rows out of one large batch in a single pass, but pays for every batch and column they are scattered over: with as
many batches as rows that is nearly all of a draw's cost. So neighbours are merged while the later one is at least half as large as the
earlier one, which copies a row log2(N / arriving rows) times at most and leaves about as many batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_ROWS = 65536  # of a merged batch: a merge moves some 20 MB then, and whoever waits for it doesn't notice


@dataclass(slots=True)
class _Pack:
    data: pa.RecordBatch
    keys: NDArray[np.int64]  # [R] rising
    alive: NDArray[np.bool_]  # [R]
    num_alive: int
    num_bytes: int

    @property
    def dead_bytes(self) -> int:
        return self.num_bytes - self.num_bytes * self.num_alive // len(self.keys)


@dataclass(frozen=True, kw_only=True)
class PackedSelection:
    """Rows that were looked up; they stay readable, from any thread, whatever leaves meanwhile."""

    parts: list[tuple[pa.RecordBatch, NDArray[np.int64]]]  # batches with the wanted rows of each
    order: NDArray[np.int64] | None  # of the parts' rows, to have them as they were asked for; None: as they are

    def read(self) -> pa.RecordBatch:
        """Copy the rows out."""
        taken = [data.take(pa.array(rows)) for data, rows in self.parts]
        if self.order is None:
            return taken[0]
        return pa.concat_batches(taken).take(pa.array(self.order))


class PackedRows:
    """Rows by key.

    Args:
        schema: of the columns, at least one.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._packs: list[_Pack] = []
        self._first_keys = np.empty(0, np.int64)  # of each pack
        self._held_bytes = 0
        self._dead_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the batches, what rows that left still hold in them included."""
        return self._held_bytes

    @property
    def dead_bytes(self) -> int:
        """Of them, those of rows that left."""
        return self._dead_bytes

    @property
    def num_batches(self) -> int:
        """Batches that the rows are in."""
        return len(self._packs)

    def append(self, batch: pa.RecordBatch, keys: NDArray[np.int64]) -> None:
        """Take in rows.

        Args:
            batch: R >= 1 rows of the schema, which own their memory.
            keys: [R] rising, above all that were there.
        """
        self._packs.append(_pack(batch, keys))
        while len(self._packs) > 1:
            before, last = self._packs[-2:]
            if len(before.keys) >= 2 * len(last.keys) or len(before.keys) + len(last.keys) > MAX_ROWS:
                break
            self._packs[-2:] = _merged([before, last])
        self._recount()

    def find(self, keys: NDArray[np.int64], columns: Sequence[str] | None = None) -> PackedSelection:
        """Look rows up.

        Args:
            keys: [K >= 1] of rows that are there, in any order; one may be there twice.
            columns: names of those to read; None: all.

        Returns:
            What reads them.
        """
        which = np.searchsorted(self._first_keys, keys, side="right") - 1
        numbers = np.unique(which)
        parts, asked = [], []
        for number in numbers.tolist():
            at = np.flatnonzero(which == number) if len(numbers) > 1 else np.arange(len(keys))
            pack = self._packs[number]
            data = pack.data if columns is None else pack.data.select(list(columns))
            parts.append((data, np.searchsorted(pack.keys, keys[at])))
            asked.append(at)
        return PackedSelection(parts=parts, order=np.argsort(np.concatenate(asked)) if len(parts) > 1 else None)

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Forget rows; a batch goes with its last row.

        Args:
            keys: [K >= 1] of rows that are there, distinct.
        """
        which = np.searchsorted(self._first_keys, keys, side="right") - 1
        for number in np.unique(which).tolist():
            pack = self._packs[number]
            leaving = np.searchsorted(pack.keys, keys[which == number])
            pack.alive[leaving] = False
            pack.num_alive -= len(leaving)
        self._packs = [pack for pack in self._packs if pack.num_alive]
        self._recount()

    def reclaim(self, share: float) -> None:
        """Copy what is left of batches in which rows that left hold too much.

        Args:
            share: of the bytes of a batch that they may hold.
        """
        self._packs = [kept for pack in self._packs for kept in (_merged([pack]) if pack.dead_bytes > share * pack.num_bytes else [pack])]
        self._recount()

    def frozen_copy(self) -> PackedRows:
        """Copy what can change and share the rows, which can't."""
        copy = PackedRows(self.schema)
        copy._packs = [_Pack(pack.data, pack.keys, pack.alive.copy(), pack.num_alive, pack.num_bytes) for pack in self._packs]
        copy._recount()
        return copy

    def _recount(self) -> None:
        self._first_keys = np.array([pack.keys[0] for pack in self._packs], dtype=np.int64)
        self._held_bytes = sum(pack.num_bytes for pack in self._packs)
        self._dead_bytes = sum(pack.dead_bytes for pack in self._packs)


def _pack(batch: pa.RecordBatch, keys: NDArray[np.int64]) -> _Pack:
    return _Pack(batch, keys, np.ones(len(keys), dtype=bool), len(keys), batch.nbytes)


def _merged(packs: Sequence[_Pack]) -> list[_Pack]:
    """The rows of neighbours that are there, in one new batch."""
    slices, keys = [], []
    for pack in packs:
        alive = np.flatnonzero(pack.alive)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(alive) != 1) + 1])
        if len(starts) > len(alive) // 4:  # rows left here and there: taking one by one costs less than many slices
            slices.append(pack.data.take(pa.array(alive)))
        else:
            lengths = np.diff(starts, append=len(alive)).tolist()
            slices += [pack.data.slice(row, length) for row, length in zip(alive[starts].tolist(), lengths, strict=True)]
        keys.append(pack.keys[alive])
    # Arrow hands a lone slice back as it is, with all of its batch; an empty one beside it makes it a copy
    return [_pack(pa.concat_batches([*slices, slices[0].slice(0, 0)]), np.concatenate(keys))]

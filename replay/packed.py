"""Narrow columns of the rows, in few batches however many small ones they came in.

Owns the memory of these columns and where each key's row is. Must not know what the columns mean, places, draws or Ray.

Arrow takes scattered rows out of one large batch in a single pass, but pays for every batch and column they are scattered over: with as
many batches as rows that is nearly all of a draw's cost. So rows are added to the last batch where it lies (replay/growing.py) until it has
MAX_ROWS. Then neighbours of which too little is left are copied together: any two hold more than half of MAX_ROWS rows that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay.growing import GrowingRows, GrowingValues

MAX_ROWS = 2**18  # of a batch: copying half of it takes some 50 ms, and a million rows are in four or five
MAX_BYTES = 2**29  # of a batch: Arrow's offsets end at 2 GiB


class _Pack:
    """One batch, to which rows can be added unless it is frozen."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._rows: GrowingRows | None = GrowingRows(schema)
        self._data: pa.RecordBatch | None = None  # of a frozen one
        self._keys = GrowingValues(np.int64)
        self._alive = GrowingValues(np.bool_)
        self.num_alive = 0
        self.num_bytes = 0

    def select(self, names: Sequence[str]) -> pa.RecordBatch:
        if self._rows is not None:
            return self._rows.select(names)
        assert self._data is not None
        return self._data.select(names)

    @property
    def keys(self) -> NDArray[np.int64]:  # [R] rising
        return self._keys.values

    @property
    def alive(self) -> NDArray[np.bool_]:  # [R]
        return self._alive.values

    @property
    def dead_bytes(self) -> int:
        return self.num_bytes - self.num_bytes * self.num_alive // len(self.keys)

    def has_room(self, num_rows: int, num_bytes: int) -> bool:
        return self._rows is not None and len(self.keys) + num_rows <= MAX_ROWS and self.num_bytes + num_bytes <= MAX_BYTES

    def extend(self, batch: pa.RecordBatch, keys: NDArray[np.int64], num_bytes: int) -> None:
        assert self._rows is not None
        self._rows.extend(batch)
        self._keys.extend(keys)
        self._alive.extend(np.ones(len(keys), np.bool_))
        self.num_alive += len(keys)
        self.num_bytes += num_bytes

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of keys that are there."""
        mine = self.keys
        if mine[-1] - mine[0] == len(mine) - 1:  # none between is missing
            return keys - mine[0]
        return np.searchsorted(mine, keys)

    def remove(self, rows: NDArray[np.int64]) -> None:
        self.alive[rows] = False
        self.num_alive -= len(rows)

    def frozen(self) -> _Pack:
        """A copy that shares the rows, and to which none are added."""
        copy = _Pack(self.schema)
        copy._rows, copy._data = None, self.select(self.schema.names)
        copy._keys.extend(self.keys)
        copy._alive.extend(self.alive)
        copy.num_alive, copy.num_bytes = self.num_alive, self.num_bytes
        return copy


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

    def append(self, batch: pa.RecordBatch, keys: NDArray[np.int64]) -> int:
        """Take in rows.

        Args:
            batch: R >= 1 rows of the schema. Copied.
            keys: [R] rising, above all that were there.

        Returns:
            Bytes of the rows.
        """
        num_bytes = batch.nbytes
        if not self._packs or not self._packs[-1].has_room(len(keys), num_bytes):
            self._packs = self._tidied()
            if not self._packs or not self._packs[-1].has_room(len(keys), num_bytes):
                self._packs.append(_Pack(self.schema))
        self._packs[-1].extend(batch, keys, num_bytes)
        self._recount()
        return num_bytes

    def find(self, keys: NDArray[np.int64], columns: Sequence[str] | None = None) -> PackedSelection:
        """Look rows up.

        Args:
            keys: [K >= 1] of rows that are there, in any order; one may be there twice.
            columns: names of those to read; None: all.

        Returns:
            What reads them.
        """
        names = self.schema.names if columns is None else list(columns)
        if len(self._packs) == 1:
            return PackedSelection(parts=[(self._packs[0].select(names), self._packs[0].find(keys))], order=None)
        by_key = np.argsort(keys)
        order = np.empty(len(keys), np.int64)
        order[by_key] = np.arange(len(keys))
        return PackedSelection(parts=[(pack.select(names), pack.find(mine)) for pack, mine in self._split(keys[by_key])], order=order)

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Forget rows; a batch goes with its last row.

        Args:
            keys: [K >= 1] of rows that are there, distinct.
        """
        for pack, mine in self._split(np.sort(keys)):
            pack.remove(pack.find(mine))
        self._packs = [pack for pack in self._packs if pack.num_alive]
        self._recount()

    def reclaim(self, share: float) -> None:
        """Copy what is left of batches in which rows that left hold too much.

        Args:
            share: of the bytes of a batch that they may hold.
        """
        self._packs = [self._together([pack]) if pack.dead_bytes > share * pack.num_bytes else pack for pack in self._packs]
        self._recount()

    def frozen_copy(self) -> PackedRows:
        """Copy what can change and share the rows, which can't."""
        copy = PackedRows(self.schema)
        copy._packs = [pack.frozen() for pack in self._packs]
        copy._recount()
        return copy

    def _split(self, keys: NDArray[np.int64]) -> list[tuple[_Pack, NDArray[np.int64]]]:
        """The packs that rising keys are in, with those of each."""
        bounds = [*np.searchsorted(keys, self._first_keys).tolist(), len(keys)]
        runs = zip(self._packs, bounds, bounds[1:], strict=False)
        return [(pack, keys[start:end]) for pack, start, end in runs if start < end]

    def _tidied(self) -> list[_Pack]:
        """The packs, neighbours that half a pack can hold copied together."""
        groups: list[list[_Pack]] = []
        for pack in self._packs:
            if groups and _are_half([*groups[-1], pack]):
                groups[-1].append(pack)
            else:
                groups.append([pack])
        # the last one is full: what is left of it makes room for more, unless that is too much
        return [self._together(group) if len(group) > 1 or (group is groups[-1] and _are_half(group)) else group[0] for group in groups]

    def _together(self, packs: Sequence[_Pack]) -> _Pack:
        """The rows of neighbours that are there, in a new pack."""
        whole = _Pack(self.schema)
        for pack in packs:
            alive = np.flatnonzero(pack.alive)
            rows = pack.select(self.schema.names).take(pa.array(alive))
            whole.extend(rows, pack.keys[alive], rows.nbytes)
        return whole

    def _recount(self) -> None:
        self._first_keys = np.array([pack.keys[0] for pack in self._packs], dtype=np.int64)
        self._held_bytes = sum(pack.num_bytes for pack in self._packs)
        self._dead_bytes = sum(pack.dead_bytes for pack in self._packs)


def _are_half(packs: Sequence[_Pack]) -> bool:
    """Whether one pack can hold the rows that are there, and as much again."""
    rows, num_bytes = sum(pack.num_alive for pack in packs), sum(pack.num_bytes - pack.dead_bytes for pack in packs)
    return rows <= MAX_ROWS // 2 and num_bytes <= MAX_BYTES // 2

"""Rows of Arrow record batches under increasing keys.

Owns the memory of the trajectories and what is known of each row (key, version, priority, use count). Must not know modes, draws,
groups or Ray. Rows never become Python objects: they are appended and gathered as Arrow arrays. Wide columns, whose size grows with the
tokens, stay in the batches they came in if these aren't small (replay/wide_batches.py); narrow ones are packed (replay/packed.py).

A row has a place in arrays that are sorted by key, and keeps it until the storage packs itself. A row that leaves only marks its place,
so that neither an append nor a removal moves the others; when the arrays are full and at least half of the places are left, the rows
move together. Whoever keeps numbers by place is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay.packed import PackedRows, PackedSelection
from replay.wide import Take, WideSelection
from replay.wide_batches import WideBatches, in_lots, in_pages

KNOWN_FIELDS: dict[str, type] = {
    "key": np.int64,  # unique, increasing with insertion
    "version": np.int64,  # the oldest policy version that sampled one of the row's tokens
    "priority": np.float64,  # >= 0; |advantage| until someone updates it
    "current_advantage": np.float32,  # as it arrived, until a newer group of the same prompt gives a better baseline
    "times_sampled": np.int64,
    "tokens": np.int64,  # of prompt and response
    "row_bytes": np.int64,  # the row's equal share of the batch it arrived in
    "place": np.int64,  # where the row is in this table; draws depend on it in the last bit
}
"""What is known of a row besides its payload."""

_STATE_FIELDS: dict[str, type] = {
    "batch": np.int64,  # the stored record batch that holds the wide columns,
    "row": np.int64,  # and the row in it
    "alive": np.bool_,  # hasn't left
    "open": np.bool_,  # consumed by a step: may be drawn as an older row, and may leave
    "serial": np.int64,  # the row's number in the order of arrival, by which a journal finds it
}

FIRST_CAPACITY = 64
DEAD_SHARE = 1 / 24  # of the rows' bytes: what rows that have left may still hold in batches that others keep,
OLDEST_DEAD_SHARE = 1 / 8  # and in the batch of the oldest row beyond that: where the oldest leave first, it goes soon by itself


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """Rows that were looked up; they stay readable, from any thread, whatever leaves the storage meanwhile."""

    schema: pa.Schema
    names: Sequence[str]  # of the wide columns
    wide: WideSelection
    packed: PackedSelection | None  # the narrow columns, if there are any

    def read(self, take: Take | None = None) -> pa.RecordBatch:
        """Copy the rows out, in the order they were asked for.

        Args:
            take: see WideSelection.read.

        Returns:
            They.
        """
        columns = dict(zip(self.names, self.wide.read(take), strict=True))
        if self.packed is not None:
            narrow = self.packed.read()
            columns |= zip(narrow.schema.names, narrow.columns, strict=True)
        return pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)


class Storage:
    """Rows sorted by key.

    Args:
        schema: of the record batches.
        narrow: names of the columns to pack, not all of them.
        moved: told the former places [N] of the rows that are now at 0 to N - 1, and the number of places.
    """

    def __init__(
        self, schema: pa.Schema, narrow: Sequence[str] = (), moved: Callable[[NDArray[np.int64], int], None] | None = None
    ) -> None:
        self.schema = schema
        self._narrow = [name for name in schema.names if name in narrow]
        self._wide = [name for name in schema.names if name not in narrow]
        self._packed = PackedRows(pa.schema([schema.field(name) for name in self._narrow])) if self._narrow else None
        self.moved = moved or (lambda old, num_places: None)
        self._columns: dict[str, NDArray] = {
            name: np.zeros(FIRST_CAPACITY, dtype=dtype) for name, dtype in {**KNOWN_FIELDS, **_STATE_FIELDS}.items()
        }
        self._columns["spans"] = np.zeros((FIRST_CAPACITY, len(self._wide), 2), np.int32)  # of the row in its batch, see wide.hold
        self._tail = 0  # places in use, those of rows that left included
        self._head = 0  # no row is alive before it
        self._num_alive = 0
        self._batches = WideBatches()
        self._first_small = 0  # no row of a batch that is to be put together is before it
        self._next_key = 0
        self._row_bytes = 0

    def __len__(self) -> int:
        return self._num_alive

    @property
    def next_key(self) -> int:
        """The key that the next appended row gets."""
        return self._next_key

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows that are there."""
        return self._row_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the stored batches, what rows that left still hold in them included."""
        return self._batches.held_bytes + (self._packed.held_bytes if self._packed is not None else 0)

    @property
    def num_batches(self) -> int:
        """Stored record batches."""
        return len(self._batches)

    @property
    def places(self) -> NDArray[np.int64]:
        """[N] places of the rows, by key."""
        return np.flatnonzero(self._columns["alive"][self._head : self._tail]) + self._head

    @property
    def layout(self) -> dict[str, int]:
        """Sizes of the arrays, on which later places depend."""
        return {"tail": self._tail, "capacity": len(self._columns["key"]), "next_key": self._next_key}

    def column(self, name: str) -> NDArray:
        """Look at one thing known of every place, those of rows that left included.

        Args:
            name: of KNOWN_FIELDS, or ``batch``, ``row``, ``alive``, ``open`` and ``serial``.

        Returns:
            [places]; a view, priorities, advantages, use counts and ``open`` may be written in place.
        """
        return self._columns[name][: self._tail]

    def append(self, batch: pa.RecordBatch, known: Mapping[str, NDArray]) -> NDArray[np.int64]:
        """Store a record batch; it's kept as it is, so hand over one that owns its memory.

        Args:
            batch: R rows of the schema.
            known: [R] each: ``version``, ``priority`` and, if they are anything else than 0, others of KNOWN_FIELDS
                or ``serial``.

        Returns:
            [R] the rows' places.

        Raises:
            ValueError: when the batch has another schema.
        """
        if not batch.schema.equals(self.schema):
            raise ValueError(f"replay stores {self.schema.names}, got a batch of {batch.schema.names}")
        num_rows = batch.num_rows
        self._reserve(num_rows)
        places = np.arange(self._tail, self._tail + num_rows)
        self._tail += num_rows
        fields = {
            "current_advantage": 0.0,
            "times_sampled": 0,
            "tokens": 0,
            **known,
            "key": np.arange(self._next_key, self._next_key + num_rows),
            "place": places,
            "open": False,
        }
        self._next_key += num_rows
        self._enter(batch, places, fields)
        return places

    def skip_keys(self, next_key: int) -> None:
        """Let the next row have a key that's further on, for when rows between were lost.

        Args:
            next_key: ignored when it was passed already.
        """
        self._next_key = max(self._next_key, next_key)

    def find(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Find rows by key.

        Args:
            keys: [K] in any order.

        Returns:
            [K] places, meaningful only where the second array, [K] bool, says that the row is there.
        """
        stored, alive = self.column("key"), self.column("alive")
        if self._num_alive:  # as long as no rows were moved past others that left, a key tells its place
            places = keys - stored[self._head] + self._head
            inside = (places >= self._head) & (places < len(stored))
            if inside.all() and (stored[places] == keys).all() and alive[places].all():
                return places, inside
        places = np.searchsorted(stored, keys)
        found = np.zeros(len(keys), dtype=bool)
        inside = places < len(stored)
        at = places[inside]
        found[inside] = (stored[at] == keys[inside]) & alive[at]
        return places, found

    def first_open(self, num: int) -> NDArray[np.int64]:
        """Find the open rows with the smallest keys, at a cost that grows with ``num`` and with the rows that wait among them.

        Args:
            num: how many.

        Returns:
            [K <= num] places.
        """
        window = 2 * num
        while True:
            end = min(self._head + window, self._tail)
            found = np.flatnonzero(self._columns["alive"][self._head : end] & self._columns["open"][self._head : end]) + self._head
            if len(found) >= num or end == self._tail:
                return found[:num]
            window *= 2

    def select(self, places: NDArray[np.int64]) -> RowSelection:
        """Look rows up, to be copied out later or in another thread.

        Args:
            places: [K >= 1] of rows, in any order; one may be there twice.

        Returns:
            What reads them.
        """
        return RowSelection(
            schema=self.schema,
            names=self._wide,
            wide=self._find_wide(places),
            packed=self._packed.find(self._columns["key"][places]) if self._packed is not None else None,
        )

    def gather(self, places: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Copy rows out.

        Args:
            places: [K] of rows, in any order; one may be there twice.
            columns: names of those to copy; None: all. Narrow ones alone cost least.

        Returns:
            The K rows in that order; the memory is the caller's.
        """
        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names], metadata=self.schema.metadata)
        if len(places) == 0:
            return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in schema], schema=schema)
        if self._packed is not None and set(names) <= set(self._narrow):
            return self._packed.find(self._columns["key"][places], names).read()
        return self.select(places).read().select(names)

    def remove(self, places: NDArray[np.int64]) -> int:
        """Forget rows; a batch goes with its last row.

        Args:
            places: [K] of rows, distinct.

        Returns:
            How many rows left.
        """
        if len(places) == 0:
            return 0
        self._columns["alive"][places] = False
        self._num_alive -= len(places)
        self._row_bytes -= int(self._columns["row_bytes"][places].sum())
        self._batches.lose(self._columns["batch"][places])
        if self._packed is not None:
            self._packed.remove(self._columns["key"][places])
        alive = self._columns["alive"][self._head : self._tail]
        self._head = self._head + int(alive.argmax()) if self._num_alive else self._tail
        if self._excess(DEAD_SHARE) > 0:
            self._repack()
        return len(places)

    def keep_only(self, places: NDArray[np.int64]) -> None:
        """Let go of the memory of rows that nobody will read any more; what is known of them stays. For a frozen copy.

        Args:
            places: [K] of the rows that can still be read, in any order.
        """
        self._batches.keep_only(self._columns["batch"][places])

    def frozen_copy(self) -> Storage:
        """Copy what can change and share the batches, which can't: cheap, and safe to read in another thread."""
        copy = Storage(self.schema, self._narrow)
        copy._packed = self._packed.frozen_copy() if self._packed is not None else None
        copy._columns = {name: column.copy() for name, column in self._columns.items()}
        copy._batches = self._batches.copy()
        for name in ("_tail", "_head", "_num_alive", "_next_key", "_row_bytes", "_first_small"):
            setattr(copy, name, getattr(self, name))
        return copy

    @classmethod
    def rebuild(
        cls,
        schema: pa.Schema,
        parts: Sequence[tuple[pa.RecordBatch, Mapping[str, NDArray]]],
        layout: Mapping[str, Any],
        narrow: Sequence[str] = (),
    ) -> Storage:
        """Put a storage together again from what was saved of it.

        Args:
            schema: of the batches.
            parts: batches with what is known of their rows, [R] for each of KNOWN_FIELDS, and ``serial`` if it isn't 0; keys and places
                rise over all parts.
            layout: of the saved storage.
            narrow: names of the columns to pack.

        Returns:
            A storage with the same rows, keys and places; no row of it is open.

        Raises:
            ValueError: when keys or places don't rise or don't fit the layout.
        """
        storage = cls(schema, narrow)
        for name, column in storage._columns.items():
            storage._columns[name] = np.zeros((layout["capacity"], *column.shape[1:]), dtype=column.dtype)
        keys = np.concatenate([known["key"] for _, known in parts]) if parts else np.empty(0, np.int64)
        places = np.concatenate([known["place"] for _, known in parts]) if parts else np.empty(0, np.int64)
        if np.any(np.diff(keys) <= 0) or np.any(keys < 0) or np.any(keys >= layout["next_key"]):
            raise ValueError(f"keys must rise and stay below {layout['next_key']}")
        if np.any(np.diff(places) <= 0) or np.any(places < 0) or np.any(places >= layout["tail"]) or layout["tail"] > layout["capacity"]:
            raise ValueError(f"places must rise and stay below {layout['tail']}")
        # between the rows stand the keys before them, so that a search still finds every row first
        storage._columns["key"][: layout["tail"]] = -1
        storage._columns["key"][places] = keys
        np.maximum.accumulate(storage._columns["key"], out=storage._columns["key"])
        storage._tail, storage._next_key = layout["tail"], layout["next_key"]
        for batch, known in parts:
            if batch.num_rows:
                storage._enter(batch, known["place"], {**known, "open": False})
        storage._head = int(places[0]) if len(places) else storage._tail
        return storage

    def _enter(self, batch: pa.RecordBatch, places: NDArray[np.int64], fields: Mapping[str, Any]) -> None:
        """Keep a batch and what is known of its rows."""
        if batch.num_rows == 0:
            return
        num_bytes = self._hold(batch.select(self._wide), places)
        if self._packed is not None:
            num_bytes += self._packed.append(batch.select(self._narrow), np.asarray(fields["key"], np.int64))
        for name, values in {"row_bytes": -(-num_bytes // len(places)), **fields}.items():
            self._columns[name][places] = values
        self._columns["alive"][places] = True
        self._num_alive += len(places)
        self._row_bytes += int(self._columns["row_bytes"][places].sum())
        if self._batches.too_many_small:
            recent = self._first_small + np.flatnonzero(self._columns["alive"][self._first_small : self._tail])
            self._move(self._batches.take_small(), recent)
            self._first_small = self._tail

    def _find_wide(self, places: NDArray[np.int64]) -> WideSelection:
        return self._batches.find(self._columns["batch"][places], self._columns["row"][places], self._columns["spans"][places])

    def _hold(self, wide: pa.RecordBatch, places: NDArray[np.int64], *, moved: bool = False) -> int:
        """Let a batch hold the rows' wide columns; its bytes."""
        number, spans, num_bytes = self._batches.hold(wide, stays=moved)
        self._columns["batch"][places] = number
        self._columns["row"][places] = np.arange(wide.num_rows)
        self._columns["spans"][places] = spans
        return num_bytes

    def _reserve(self, num_rows: int) -> None:
        """Make places behind the rows, by moving the rows together or by doubling; either way the mean cost of an append is constant."""
        capacity = len(self._columns["key"])
        if self._tail + num_rows <= capacity:
            return
        old = self.places
        while 2 * (len(old) + num_rows) > capacity:
            capacity *= 2
        for name, column in self._columns.items():
            moved = np.zeros((capacity, *column.shape[1:]), dtype=column.dtype)
            moved[: len(old)] = column[old]
            self._columns[name] = moved
        self._columns["place"][: len(old)] = np.arange(len(old))
        self._head, self._tail, self._first_small = 0, len(old), 0
        self.moved(old, len(old))

    def _excess(self, share: float) -> float:
        """Bytes that rows which left hold beyond a share of those of the rows that are there."""
        dead = self._batches.dead_bytes + (self._packed.dead_bytes if self._packed is not None else 0)
        alive = self.held_bytes - dead
        of_oldest = self._batches.dead_bytes_of(int(self._columns["batch"][self._head])) if self._num_alive else 0
        return dead - min(of_oldest, OLDEST_DEAD_SHARE * alive) - share * alive

    def _repack(self) -> None:
        """Move the rows of the emptiest batches into new ones, until rows that left hold half of what they may."""
        if self._packed is not None:
            self._packed.reclaim(DEAD_SHARE / 4)
        self._move(self._batches.emptiest(self._excess(DEAD_SHARE / 2)), self.places)
        pa.default_memory_pool().release_unused()  # else Arrow keeps what the columns lay in while they moved, a tenth of the rows

    def _move(self, numbers: list[int], places: NDArray[np.int64]) -> None:
        """Move the rows of batches into new ones.

        Args:
            numbers: of the batches.
            places: [N] of rows, those of the batches among them, by key.
        """
        of = self._columns["batch"][places]
        among = np.flatnonzero(np.isin(of, numbers))
        among = among[np.argsort(of[among], kind="stable")]  # batch by batch
        places, of = places[among], of[among]
        schema = pa.schema([self.schema.field(name) for name in self._wide])
        left = sorted(numbers)
        for part in in_lots(np.arange(len(places)), self._columns["row_bytes"][places]):
            moving = np.sort(places[part])
            self._hold(pa.RecordBatch.from_arrays(in_pages(self._find_wide(moving)), schema=schema), moving, moved=True)
            next_one = of[part[-1] + 1] if part[-1] + 1 < len(of) else np.inf
            done, left = [number for number in left if number < next_one], [number for number in left if number >= next_one]
            self._batches.drop(done)  # at once, so that its memory serves the next ones
        self._batches.drop(left)

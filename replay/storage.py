"""Rows of Arrow record batches under increasing keys.

Owns the memory of the trajectories and what is known of each row (key, version, priority, use count). Must not know modes, draws,
groups or Ray. Rows never become Python objects: they are appended and gathered as Arrow arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

KNOWN_FIELDS: dict[str, type] = {
    "key": np.int64,  # unique, increasing with insertion
    "version": np.int64,  # the oldest policy version that sampled one of the row's tokens
    "priority": np.float64,  # >= 0; |advantage| until someone updates it
    "times_sampled": np.int64,
}
"""What is known of a row besides its payload."""

ADDRESS_FIELDS: dict[str, type] = {"batch": np.int64, "row": np.int64}
"""Where a row's payload is: the stored record batch and the row in it."""

NEAR_ROWS = 8  # wanted rows of a batch this close are copied as one run: a few rows more cost less than another slice


@dataclass(slots=True)
class _StoredBatch:
    data: pa.RecordBatch
    num_bytes: int  # asking Arrow anew walks through all columns
    num_rows: int  # of its rows, those that haven't left


class Storage:
    """Rows sorted by key; a position is a row's place in that order and holds until the next append or removal.

    Args:
        schema: of the record batches.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        # places [head, tail) hold rows; free places behind make appends cheap, those in front removals of the oldest
        self._columns: dict[str, NDArray] = {name: np.empty(0, dtype=dtype) for name, dtype in {**KNOWN_FIELDS, **ADDRESS_FIELDS}.items()}
        self._head = self._tail = 0
        self._batches: dict[int, _StoredBatch] = {}
        self._next_key = 0
        self._next_batch = 0
        self._num_bytes = 0

    def __len__(self) -> int:
        return self._tail - self._head

    @property
    def next_key(self) -> int:
        """The key that the next appended row gets."""
        return self._next_key

    @property
    def num_bytes(self) -> int:
        """Payload bytes of the stored batches, rows that left a batch which is still there included."""
        return self._num_bytes

    @property
    def num_batches(self) -> int:
        """Stored record batches."""
        return len(self._batches)

    def column(self, name: str) -> NDArray:
        """Look at one thing known of every row.

        Args:
            name: of KNOWN_FIELDS or ADDRESS_FIELDS.

        Returns:
            [N] by position; a view, priorities and use counts may be written in place.
        """
        return self._columns[name][self._head : self._tail]

    def append(self, batch: pa.RecordBatch, *, versions: NDArray[np.int64], priorities: NDArray[np.float64]) -> NDArray[np.int64]:
        """Store a record batch; it's kept as it is, so hand over one that owns its memory.

        Args:
            batch: R rows of the schema.
            versions: [R] the oldest policy version of each row.
            priorities: [R] float64 >= 0.

        Returns:
            [R] the rows' keys, increasing by one.

        Raises:
            ValueError: when the batch has another schema.
        """
        if not batch.schema.equals(self.schema):
            raise ValueError(f"replay stores {self.schema.names}, got a batch of {batch.schema.names}")
        keys = np.arange(self._next_key, self._next_key + batch.num_rows, dtype=np.int64)
        self._adopt(batch, {"key": keys, "version": versions, "priority": priorities, "times_sampled": np.zeros(len(keys), np.int64)})
        self._next_key += batch.num_rows
        return keys

    def positions(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Find rows by key.

        Args:
            keys: [K] in any order.

        Returns:
            [K] positions, meaningful only where the second array, [K] bool, says that the row is there.
        """
        stored = self.column("key")
        positions = np.searchsorted(stored, keys)
        found = np.zeros(len(keys), dtype=bool)
        inside = positions < len(stored)
        found[inside] = stored[positions[inside]] == keys[inside]
        return positions, found

    def gather(self, positions: NDArray[np.int64]) -> pa.RecordBatch:
        """Copy rows out.

        Args:
            positions: [K] strictly increasing.

        Returns:
            The K rows in that order; the memory is the caller's.
        """
        if len(positions) == 0:
            return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in self.schema], schema=self.schema)
        batches, rows = self.column("batch")[positions], self.column("row")[positions]
        # near rows of one batch are one zero-copy slice: the cost of a gather is its number of slices
        breaks = (np.diff(batches) != 0) | (np.diff(rows) > NEAR_ROWS)
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
        sizes = np.diff(starts, append=len(rows))
        first = rows[starts]
        lengths = rows[starts + sizes - 1] - first + 1
        slices = [
            self._batches[batch].data.slice(row, length)
            for batch, row, length in zip(batches[starts].tolist(), first.tolist(), lengths.tolist(), strict=True)
        ]
        shifts = np.cumsum(lengths) - lengths - first  # from a row in its batch to its place among the slices
        return pa.concat_batches(slices).take(pa.array(rows + np.repeat(shifts, sizes)))

    def remove(self, leaving: NDArray[np.bool_]) -> int:
        """Forget rows; a batch goes with its last row.

        Args:
            leaving: [N] bool by position.

        Returns:
            How many rows left.
        """
        num_leaving = int(np.count_nonzero(leaving))
        if num_leaving == 0:
            return 0
        self._release(self.column("batch")[leaving])
        num_kept = len(self) - num_leaving
        for name, column in self._columns.items():
            column[self._head : self._head + num_kept] = self.column(name)[~leaving]
        self._tail = self._head + num_kept
        return num_leaving

    def remove_oldest(self, num: int) -> int:
        """Forget the rows with the smallest keys, at a cost that doesn't depend on how many stay.

        Args:
            num: 0 <= num <= N.

        Returns:
            How many rows left.
        """
        self._release(self.column("batch")[:num])
        self._head += num
        return num

    def frozen_copy(self) -> Storage:
        """Copy what can change and share the batches, which can't: cheap, and safe to read in another thread."""
        copy = Storage(self.schema)
        copy._columns = {name: self.column(name).copy() for name in self._columns}
        copy._tail = len(self)
        copy._batches = {number: _StoredBatch(batch.data, batch.num_bytes, batch.num_rows) for number, batch in self._batches.items()}
        copy._next_key, copy._next_batch, copy._num_bytes = self._next_key, self._next_batch, self._num_bytes
        return copy

    @classmethod
    def rebuild(cls, schema: pa.Schema, parts: Sequence[tuple[pa.RecordBatch, Mapping[str, NDArray]]], *, next_key: int) -> Storage:
        """Put a storage together again from what was saved of it.

        Args:
            schema: of the batches.
            parts: batches with what is known of their rows, [R] for each of KNOWN_FIELDS; keys rise over all parts.
            next_key: of the saved storage.

        Returns:
            A storage with the same rows, keys and order.

        Raises:
            ValueError: when keys don't rise or reach next_key.
        """
        storage = cls(schema)
        for batch, known in parts:
            storage._adopt(batch, known)
        keys = storage.column("key")
        if np.any(np.diff(keys) <= 0) or (len(keys) and keys[-1] >= next_key):
            raise ValueError(f"keys must rise and stay below {next_key}")
        storage._next_key = next_key
        return storage

    def _adopt(self, batch: pa.RecordBatch, known: Mapping[str, NDArray]) -> None:
        """Keep a batch and what is known of its rows."""
        if batch.num_rows == 0:
            return
        self._reserve(batch.num_rows)
        places = slice(self._tail, self._tail + batch.num_rows)
        for name in KNOWN_FIELDS:
            self._columns[name][places] = known[name]
        self._columns["batch"][places] = self._next_batch
        self._columns["row"][places] = np.arange(batch.num_rows)
        self._tail += batch.num_rows
        self._batches[self._next_batch] = _StoredBatch(batch, batch.nbytes, batch.num_rows)
        self._num_bytes += self._batches[self._next_batch].num_bytes
        self._next_batch += 1

    def _reserve(self, num_rows: int) -> None:
        """Make free places behind the rows; doubling keeps the mean cost of an append constant."""
        if self._tail + num_rows <= len(self._columns["key"]):
            return
        size = len(self)
        for name in self._columns:
            grown = np.empty(2 * (size + num_rows), dtype=self._columns[name].dtype)
            grown[:size] = self.column(name)
            self._columns[name] = grown
        self._head, self._tail = 0, size

    def _release(self, batches: NDArray[np.int64]) -> None:
        """Count rows off their batches, one entry a leaving row."""
        numbers, counts = np.unique(batches, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            batch = self._batches[number]
            batch.num_rows -= count
            if batch.num_rows == 0:
                self._num_bytes -= batch.num_bytes
                del self._batches[number]

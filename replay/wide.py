"""Wide columns of the rows, whose size grows with the tokens, in the batches they came in.

Owns the memory of these columns and how rows are copied out of it. Must not know what the columns mean, keys, places, draws or Ray.

Arrow makes about ten objects for each scattered row of a list column before it copies a byte. So the bytes of lists and strings are joined
as they lie there; Arrow copies only what isn't whole bytes and nothing else: missing values, numbers that aren't in lists, bits. Lists of
bits that are all set, as loss masks nearly always are, needn't be copied at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from algorithms.wire import MAX_VALUES, column_of_parts, column_parts

Take = Callable[[int], memoryview | None]
"""Gives so many bytes of memory to write to, or none."""


@dataclass(slots=True, eq=False)
class WideBatch:
    """A batch that rows are in."""

    data: pa.RecordBatch
    parts: list[NDArray[np.uint8] | None]  # a column's bytes, of bits that are all set none; None: Arrow copies the column
    num_bytes: int  # asking Arrow anew walks through all columns
    num_alive: int  # of its rows

    @property
    def is_joined(self) -> bool:
        """Whether Arrow copies none of the columns."""
        return all(part is not None for part in self.parts)

    @property
    def dead_bytes(self) -> int:
        """The share of the rows that left."""
        return self.num_bytes - self.num_bytes * self.num_alive // self.data.num_rows

    def copy(self) -> WideBatch:
        """Copy what can change."""
        return WideBatch(self.data, self.parts, self.num_bytes, self.num_alive)


def hold(data: pa.RecordBatch) -> tuple[WideBatch, NDArray[np.int32]]:
    """Take a batch in.

    Args:
        data: R >= 1 rows of C columns, which own their memory.

    Returns:
        The batch; and [R, C, 2] the first value and the number of values of each row and column, by which the row is read.
    """
    spans = np.zeros((data.num_rows, data.num_columns, 2), np.int32)
    parts: list[NDArray[np.uint8] | None] = []
    for c, column in enumerate(data.columns):
        found = column_parts(column)
        if found is None or (_is_bits(column.type) and column.values.true_count < len(column.values)):
            parts.append(None)
            continue
        offsets, values = found
        spans[:, c, 0] = offsets[:-1]
        np.subtract(offsets[1:], offsets[:-1], out=spans[:, c, 1])
        parts.append(np.frombuffer(b"" if _is_bits(column.type) else values, np.uint8))
    return WideBatch(data, parts, data.nbytes, data.num_rows), spans


@dataclass(frozen=True, kw_only=True)
class WideSelection:
    """Rows that were looked up; they stay readable, from any thread, whatever leaves meanwhile."""

    batches: list[WideBatch]  # of each run of neighbours; the fewer runs, the cheaper
    rows: list[int]  # the first row of each run in its batch
    starts: NDArray[np.int64]  # the first row of each run among the K rows
    spans: NDArray[np.int32]  # [K, C, 2] of hold
    all_joined: bool  # Arrow copies no column of any batch; False: perhaps

    @property
    def num_bytes(self) -> int:
        """Of what ``read`` takes memory for."""
        widths = np.array([_byte_width(kind) for kind in self.batches[0].data.schema.types])
        return int(self.spans[:, :, 1].sum(axis=0, dtype=np.int64) @ widths)

    def read(self, take: Take | None = None) -> list[pa.Array]:
        """Copy the rows out, column by column.

        Args:
            take: gives memory for them; None, or where it has none: Arrow's.

        Returns:
            The columns.
        """
        kinds = self.batches[0].data.schema.types
        ends = np.append(self.starts[1:], len(self.spans)) - 1
        # of all columns at once: a NumPy call costs more than it does here
        widths = np.array([_byte_width(kind) for kind in kinds])
        firsts = (self.spans[self.starts, :, 0].T * widths[:, None]).tolist()
        lasts = (self.spans[ends].sum(axis=2, dtype=np.int64).T * widths[:, None]).tolist()
        lengths = np.cumsum(self.spans[:, :, 1].T, axis=1, dtype=np.int64)
        offsets = np.zeros((len(kinds), len(self.spans) + 1), np.int32)
        offsets[:, 1:] = lengths
        runs = [batch.parts for batch in self.batches]
        joined = [self.all_joined or all(parts[c] is not None for parts in runs) for c in range(len(kinds))]
        columns = []
        for c, (kind, num_values) in enumerate(zip(kinds, lengths[:, -1].tolist(), strict=True)):
            if num_values > MAX_VALUES or not joined[c]:
                columns.append(self._copied(c, (ends - self.starts + 1).tolist()))
                continue
            if _is_bits(kind):
                data = pa.py_buffer(_set_bits(num_values))
            else:
                num_bytes = num_values * int(widths[c])
                taken = take(num_bytes) if take is not None else None
                # memory of Arrow's, which keeps what was freed: fresh pages cost more than the copy
                data = pa.allocate_buffer(num_bytes) if taken is None else pa.py_buffer(taken)
                values = [parts[c][i:j] for parts, i, j in zip(runs, firsts[c], lasts[c], strict=True)]  # type: ignore[index]
                np.concatenate(values, out=np.frombuffer(data, np.uint8))
            columns.append(column_of_parts(kind, len(self.spans), num_values, pa.py_buffer(offsets[c]), data))
        return columns

    def _copied(self, c: int, lengths: Sequence[int]) -> pa.Array:
        """A column as Arrow puts it together."""
        runs = zip(self.batches, self.rows, lengths, strict=True)
        return pa.concat_arrays([batch.data.column(c).slice(row, length) for batch, row, length in runs])


def _is_bits(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_boolean(kind.value_type)


def _byte_width(kind: pa.DataType) -> int:
    """Bytes of a value of a column that is joined from its bytes."""
    if pa.types.is_list(kind) and pa.types.is_primitive(kind.value_type):
        return kind.value_type.bit_width // 8
    return 1


def _set_bits(num: int) -> bytes:
    """Bits that are all set, the rest of the last byte empty."""
    whole, rest = divmod(num, 8)
    return b"\xff" * whole + (bytes([2**rest - 1]) if rest else b"")

"""Rows on their way between two processes: as few buffers as possible, and none copied before it has to be.

Owns the form in which record batches and tables are pickled. Must not know who sends them, nor Ray. Arrow's own pickling
hands over 45 buffers a batch of trajectories, each with its price at both ends. Here the narrow columns go as one Arrow IPC message, and
the few columns that hold nearly all bytes as they lie in memory, out of band, so that the receiver maps what the sender wrote.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from algorithms.schema import SAMPLE_SCHEMA, SCHEMA_VERSION, TOKEN_COLUMNS, TRAJECTORY_SCHEMA

MAX_VALUES = 2**31 - 1  # of a column: Arrow's offsets are int32
_KNOWN_SCHEMAS = {"trajectory": TRAJECTORY_SCHEMA, "sample": SAMPLE_SCHEMA}


class Parcel:
    """Rows to send; whoever unpickles one gets the rows themselves.

    Args:
        rows: a record batch, or a table; one chunk travels as it is, several are put together.
    """

    def __init__(self, rows: pa.RecordBatch | pa.Table) -> None:
        self.rows = rows

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        rows = self.rows
        if isinstance(rows, pa.Table):
            columns = [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in rows.columns]
        else:
            columns = rows.columns
        schema = next((name for name, known in _KNOWN_SCHEMAS.items() if rows.schema.equals(known, check_metadata=True)), None)
        apart = {i: parts for i, name in enumerate(rows.schema.names) if name in TOKEN_COLUMNS and (parts := column_parts(columns[i]))}
        together = [i for i in range(len(columns)) if i not in apart]
        message = pa.RecordBatch.from_arrays([columns[i] for i in together], names=[str(i) for i in together]).serialize()
        return _open, (
            isinstance(rows, pa.Table),
            rows.num_rows,
            (SCHEMA_VERSION, schema) if schema is not None else rows.schema.serialize().to_pybytes(),
            together,
            pickle.PickleBuffer(message),
            {i: tuple(map(pickle.PickleBuffer, parts)) for i, parts in apart.items()},
        )


def concat_rows(batches: Sequence[pa.RecordBatch], take: Callable[[int], memoryview | None]) -> pa.RecordBatch:
    """Put batches together, the columns that hold nearly all bytes in given memory.

    Args:
        batches: at least one, of one schema.
        take: gives so many bytes of memory to write to, or none: then Arrow's is used.

    Returns:
        Their rows.

    Raises:
        pyarrow.ArrowInvalid: when they are of several schemas, or together too large.
    """
    schema = batches[0].schema
    if not all(batch.schema.equals(schema) for batch in batches):
        raise pa.ArrowInvalid("batches of several schemas")
    columns = []
    for i, field in enumerate(schema):
        arrays = [batch.column(i) for batch in batches]
        columns.append((_concat_lists(arrays, take) if field.name in TOKEN_COLUMNS else None) or pa.concat_arrays(arrays))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _concat_lists(arrays: Sequence[pa.Array], take: Callable[[int], memoryview | None]) -> pa.Array | None:
    """Lists put together in given memory; None when that can't be done by whole bytes, or there is none."""
    kind = arrays[0].type
    if not pa.types.is_list(kind) or pa.types.is_boolean(kind.value_type):
        return None
    parts = [found for array in arrays if (found := column_parts(array)) is not None]
    first_values = np.cumsum([0, *(int(offsets[-1]) for offsets, _ in parts)])
    if len(parts) < len(arrays) or first_values[-1] > MAX_VALUES:
        return None
    memory = take(sum(len(data) for _, data in parts))
    if memory is None:
        return None
    np.concatenate([np.frombuffer(data, np.uint8) for _, data in parts], out=np.frombuffer(memory, np.uint8))
    ends = [offsets[1:] + first for (offsets, _), first in zip(parts, first_values.tolist(), strict=False)]
    offsets = np.concatenate([np.zeros(1, np.int32), *ends], dtype=np.int32)
    return column_of_parts(kind, len(offsets) - 1, int(first_values[-1]), pa.py_buffer(offsets), pa.py_buffer(memory))


def column_parts(column: pa.Array) -> tuple[Any, Any] | None:
    """Take a list or string column apart.

    Args:
        column: [R] of any type.

    Returns:
        Offsets [R + 1] int32 from 0 on, and the bytes of the values, none more than the rows need; None for a column that isn't these two
        alone: of another type, without rows, with missing values, or of bits that begin within a byte.
    """
    if column.null_count:
        return None
    buffers = column.buffers()
    first = 0
    if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
        values, width = column.values, column.type.value_type.bit_width
        if values.null_count:
            return None
        first = values.offset
    elif pa.types.is_string(column.type):
        width = 8
    else:
        return None
    offsets = np.frombuffer(buffers[1], np.int32)[column.offset : column.offset + len(column) + 1] if buffers[1] is not None else None
    if offsets is None or len(offsets) == 0:
        return None
    start, end = (first + int(offsets[0])) * width, (first + int(offsets[-1])) * width
    if start % 8:
        return None
    data = buffers[-1].slice(start // 8, -(-end // 8) - start // 8) if buffers[-1] is not None and end > start else b""
    return (offsets - offsets[0] if offsets[0] else offsets), data


def _open(
    as_table: bool,
    num_rows: int,
    schema: tuple[int, str] | bytes,
    together: Sequence[int],
    message: Any,
    apart: dict[int, tuple[Any, Any]],
) -> pa.RecordBatch | pa.Table:
    """The rows of a parcel; they share the memory of its buffers."""
    if isinstance(schema, bytes):
        found = pa.ipc.read_schema(pa.py_buffer(schema))
    elif schema[0] != SCHEMA_VERSION:
        raise ValueError(f"rows of schema version {schema[0]} came from another process, this one has version {SCHEMA_VERSION}")
    else:
        found = _KNOWN_SCHEMAS[schema[1]]
    fields = pa.schema([pa.field(str(i), found.field(i).type) for i in together])
    columns = dict(zip(together, pa.ipc.read_record_batch(pa.py_buffer(message), fields).columns, strict=True)) if together else {}
    for i, (offsets, data) in apart.items():
        num_values = int(np.frombuffer(offsets, np.int32)[-1])
        columns[i] = column_of_parts(found.field(i).type, num_rows, num_values, pa.py_buffer(offsets), pa.py_buffer(data))
    arrays = [columns[i] for i in range(len(found))]
    return pa.Table.from_arrays(arrays, schema=found) if as_table else pa.RecordBatch.from_arrays(arrays, schema=found)


def column_of_parts(kind: pa.DataType, num_rows: int, num_values: int, offsets: pa.Buffer, data: pa.Buffer) -> pa.Array:
    """Put a list or string column together; the inverse of column_parts.

    Args:
        kind: of the column.
        num_rows: R >= 1.
        num_values: of all rows, the last offset.
        offsets: [R + 1] int32.
        data: bytes of the values.

    Returns:
        [R] without missing values; it shares the buffers' memory.
    """
    if not pa.types.is_list(kind):
        return pa.Array.from_buffers(kind, num_rows, [None, offsets, data])
    values = pa.Array.from_buffers(kind.value_type, num_values, [None, data])
    return pa.Array.from_buffers(kind, num_rows, [None, offsets], children=[values])

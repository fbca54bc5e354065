"""Rows on their way between two processes: as few buffers as possible, and none copied before it has to be.

Owns the form in which record batches and tables are pickled. Must not know who sends them, nor Ray. Arrow's own pickling
hands over 45 buffers a batch of trajectories, each with its price at both ends. Here the narrow columns go as one Arrow IPC message, and
the few columns that hold nearly all bytes as they lie in memory, out of band, so that the receiver maps what the sender wrote.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from algorithms.schema import SAMPLE_SCHEMA, SCHEMA_VERSION, TOKEN_COLUMNS, TRAJECTORY_SCHEMA

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
        apart = {i: parts for i, name in enumerate(rows.schema.names) if name in TOKEN_COLUMNS and (parts := _parts(columns[i]))}
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


def _parts(column: pa.Array) -> tuple[Any, Any] | None:
    """Offsets and values of a column, none more than its rows need; None: it has missing values, or bits that begin within a byte."""
    if column.null_count:
        return None
    buffers = column.buffers()
    first = 0
    if pa.types.is_list(column.type):
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
    return (np.ascontiguousarray(offsets - offsets[0]) if offsets[0] else offsets), data


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
        columns[i] = _column(found.field(i).type, num_rows, pa.py_buffer(offsets), pa.py_buffer(data))
    arrays = [columns[i] for i in range(len(found))]
    return pa.Table.from_arrays(arrays, schema=found) if as_table else pa.RecordBatch.from_arrays(arrays, schema=found)


def _column(kind: pa.DataType, num_rows: int, offsets: pa.Buffer, data: pa.Buffer) -> pa.Array:
    """A list or string column of its parts."""
    if not pa.types.is_list(kind):
        return pa.Array.from_buffers(kind, num_rows, [None, offsets, data])
    length = int(np.frombuffer(offsets, np.int32)[-1])
    return pa.Array.from_buffers(kind, num_rows, [None, offsets], children=[pa.Array.from_buffers(kind.value_type, length, [None, data])])

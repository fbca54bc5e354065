"""Arrow columns that rows are added to where they lie, at a cost that doesn't grow with the rows that are there.

Owns the memory of the columns. Must not know what they mean, keys, places, draws or Ray.

A record batch can't grow. Here each of its buffers is the beginning of a NumPy array with room behind it: rows are written into that room,
and a record batch over the longer beginning is a few objects. What was handed out before sees its own beginning, which never changes;
where the room ends the array is copied to one twice as large, and the former one goes with the last who looks at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FIRST_ROOM = 1024  # values


class GrowingRows:
    """Rows of one schema.

    Args:
        schema: of numbers, booleans, strings, and lists and structs of them.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._columns = {field.name: _column(field.type) for field in schema}
        # of all rows, what was asked for since rows were added
        self._views: dict[str, pa.Array] = {}
        self._selected: dict[tuple[str, ...], pa.RecordBatch] = {}

    def select(self, names: Sequence[str]) -> pa.RecordBatch:
        """Look at all rows; those that are added later are not among them.

        Args:
            names: of the columns; each has its price.

        Returns:
            These columns.
        """
        wanted = tuple(names)
        if wanted not in self._selected:
            for name in set(names) - self._views.keys():
                self._views[name] = self._columns[name].view()
            schema = pa.schema([self._schema.field(name) for name in names])
            self._selected[wanted] = pa.RecordBatch.from_arrays([self._views[name] for name in names], schema=schema)
        return self._selected[wanted]

    def extend(self, batch: pa.RecordBatch) -> None:
        """Add rows.

        Args:
            batch: of the schema. Copied.
        """
        for column, added in zip(self._columns.values(), batch.columns, strict=True):
            column.extend(added)
        self._views, self._selected = {}, {}


class GrowingValues:
    """Numbers in one array.

    Args:
        dtype: of the numbers.
    """

    def __init__(self, dtype: np.typing.DTypeLike) -> None:
        self.array: NDArray = np.empty(FIRST_ROOM, dtype)
        self.size = 0
        self._buffer: pa.Buffer | None = None

    @property
    def values(self) -> NDArray:
        """[size] the numbers; a view."""
        return self.array[: self.size]

    @property
    def buffer(self) -> pa.Buffer:
        """The whole array, room included."""
        if self._buffer is None:
            self._buffer = pa.py_buffer(self.array)
        return self._buffer

    def extend(self, added: NDArray) -> None:
        """Add numbers.

        Args:
            added: [n].
        """
        self.write(self.size, added)

    def write(self, first: int, values: NDArray) -> None:
        """Write numbers, the last of which is the last of all then.

        Args:
            first: where; at most ``size``.
            values: [n].
        """
        end = first + len(values)
        if end > len(self.array):
            grown = np.empty(max(end, 2 * len(self.array)), self.array.dtype)
            grown[: self.size] = self.array[: self.size]
            self.array, self._buffer = grown, None
        self.array[first:end] = values
        self.size = end


class _Column(Protocol):
    """One column, or one that is nested in it."""

    def extend(self, added: pa.Array) -> None:
        """Add values."""

    def view(self) -> pa.Array:
        """All values."""


def _column(kind: pa.DataType) -> _Column:
    if pa.types.is_list(kind):
        return _Lists(kind)
    if pa.types.is_struct(kind):
        return _Structs(kind)
    if pa.types.is_string(kind):
        return _Strings(kind)
    return _Booleans() if pa.types.is_boolean(kind) else _Numbers(kind)


class _Bits:
    """Bits in the order that Arrow has them in."""

    def __init__(self) -> None:
        self._bytes = GrowingValues(np.uint8)
        self._size = 0

    @property
    def buffer(self) -> pa.Buffer:
        return self._bytes.buffer

    def extend(self, added: NDArray[np.bool_]) -> None:
        whole, rest = divmod(self._size, 8)
        if rest:  # the last byte is written again with the bits that it has, so that who reads it meanwhile sees no other
            added = np.concatenate([np.unpackbits(self._bytes.array[whole : whole + 1], count=rest, bitorder="little"), added])
        self._bytes.write(whole, np.packbits(added, bitorder="little"))
        self._size = 8 * whole + len(added)


class _Validity:
    """Which values of a column are missing."""

    def __init__(self) -> None:
        self.length = 0
        self._bits: _Bits | None = None  # None: no value is missing

    @property
    def buffer(self) -> pa.Buffer | None:
        return None if self._bits is None else self._bits.buffer

    def extend(self, added: pa.Array) -> None:
        if added.null_count and self._bits is None:
            self._bits = _Bits()
            self._bits.extend(np.ones(self.length, np.bool_))
        if self._bits is not None:
            self._bits.extend(added.is_valid().to_numpy(zero_copy_only=False))
        self.length += len(added)


class _Numbers:
    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._valid = _Validity()
        self._values = GrowingValues(f"u{kind.bit_width // 8}")

    def extend(self, added: pa.Array) -> None:
        if len(added) == 0:
            return
        self._valid.extend(added)
        self._values.extend(np.frombuffer(added.buffers()[1], self._values.array.dtype)[added.offset : added.offset + len(added)])

    def view(self) -> pa.Array:
        return pa.Array.from_buffers(self._kind, self._valid.length, [self._valid.buffer, self._values.buffer])


class _Booleans:
    def __init__(self) -> None:
        self._valid = _Validity()
        self._values = _Bits()

    def extend(self, added: pa.Array) -> None:
        self._valid.extend(added)
        self._values.extend((added.fill_null(False) if added.null_count else added).to_numpy(zero_copy_only=False))

    def view(self) -> pa.Array:
        return pa.Array.from_buffers(pa.bool_(), self._valid.length, [self._valid.buffer, self._values.buffer])


class _Offsets:
    """Where the values of each row end, and which rows are missing."""

    def __init__(self) -> None:
        self.valid = _Validity()
        self._ends = GrowingValues(np.int32)
        self._ends.extend(np.zeros(1, np.int32))

    @property
    def buffers(self) -> list[pa.Buffer | None]:
        return [self.valid.buffer, self._ends.buffer]

    def extend(self, added: pa.Array) -> tuple[int, int]:
        """Add rows; the first and the end of their values among those of the array."""
        offsets = np.frombuffer(added.buffers()[1], np.int32)[added.offset : added.offset + len(added) + 1]
        self.valid.extend(added)
        self._ends.extend(offsets[1:] + (self._ends.array[self._ends.size - 1] - offsets[0]))
        return int(offsets[0]), int(offsets[-1])


class _Strings:
    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._offsets = _Offsets()
        self._bytes = GrowingValues(np.uint8)

    def extend(self, added: pa.Array) -> None:
        if len(added) == 0:
            return
        first, end = self._offsets.extend(added)
        if end > first:
            self._bytes.extend(np.frombuffer(added.buffers()[2], np.uint8)[first:end])

    def view(self) -> pa.Array:
        return pa.Array.from_buffers(self._kind, self._offsets.valid.length, [*self._offsets.buffers, self._bytes.buffer])


class _Lists:
    def __init__(self, kind: pa.ListType) -> None:
        self._kind = kind
        self._offsets = _Offsets()
        self._values = _column(kind.value_type)

    def extend(self, added: pa.ListArray) -> None:
        if len(added) == 0:
            return
        first, end = self._offsets.extend(added)
        self._values.extend(added.values.slice(first, end - first))

    def view(self) -> pa.Array:
        return pa.Array.from_buffers(self._kind, self._offsets.valid.length, self._offsets.buffers, children=[self._values.view()])


class _Structs:
    def __init__(self, kind: pa.StructType) -> None:
        self._kind = kind
        self._valid = _Validity()
        self._fields = [_column(field.type) for field in kind]

    def extend(self, added: pa.StructArray) -> None:
        self._valid.extend(added)
        for i, column in enumerate(self._fields):
            column.extend(added.field(i))

    def view(self) -> pa.Array:
        children = [column.view() for column in self._fields]
        return pa.Array.from_buffers(self._kind, self._valid.length, [self._valid.buffer], children=children)

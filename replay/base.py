"""A base of the journal: a buffer's state in one small file that tells where the rows lie and doesn't hold them.

Owns that file and its checks. Must not know commands, draws or Ray. It is a single record (replay/journal.py) of JSON and Arrow IPC
messages, and gets its name when all that it refers to is on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import numpy as np
import pyarrow as pa

from algorithms.schema import NARROW_COLUMNS, TRAJECTORY_SCHEMA
from replay.groups import GroupSummary
from replay.journal import BASE, JournalError, Record, map_file, numbered_path, record_at, sync_path
from replay.moving import ROWS_PER_RECORD, SYNC_S
from replay.row_records import PlacedRows
from replay.segments import SegmentWriter
from replay.snapshot import Saved
from replay.storage import KNOWN_FIELDS, Storage
from replay.whereabouts import RUN, Places, serials_of

T = TypeVar("T")

FORMAT = 1
WRITING = ".base.tmp"
AT_ONCE = 512  # values that become Arrow: all 65,536 summaries at once would keep other threads from running for a tenth of a second
SUMMARY_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
SCHEMAS = {
    "rows": pa.schema([(name, pa.from_numpy_dtype(dtype)) for name, dtype in KNOWN_FIELDS.items()] + [("serial", pa.int64())]),
    "waiting": pa.schema([("serial", pa.int64()), ("length", pa.int64())]),
    "runs": pa.schema([(name, pa.int64()) for name in RUN.fields or ()]),
    "images": pa.schema([("sha256", pa.string()), ("file", pa.int64()), ("offset", pa.int64())]),
    "known_groups": pa.schema([("group_id", pa.string())]),
    "arrived": pa.schema([(name, SUMMARY_TYPES[kind]) for name, kind in get_type_hints(GroupSummary).items()]),
}
"""What a base holds as Arrow, each as one record batch; the rest of the state is JSON."""


class BaseWriter:
    """Writes the bases of a journal, one at a time.

    Args:
        folder: of the journal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known_groups: _Window[str] = _Window(SCHEMAS["known_groups"], lambda names: [names])
        self._arrived: _Window[GroupSummary] = _Window(SCHEMAS["arrived"], _transposed)

    def write(self, number: int, saved: Saved, places: Places, *, sequence: int) -> Path:
        """Write a base.

        Args:
            number: of the segment that follows it.
            saved: a buffer's state; the files that its rows lie in are on the disk.
            places: of its rows and images.
            sequence: of the record that follows it.

        Returns:
            Its file.

        Raises:
            OSError: when it can't be written; there is no such base then.
        """
        state = dict(saved.state)
        storage, at = saved.storage, saved.storage.places
        columns: dict[str, Sequence[Any]] = {
            "rows": [storage.column(name)[at] for name in SCHEMAS["rows"].names],
            "waiting": [saved.waiting_serials, [rows.num_rows for rows in saved.waiting]],
            "runs": [np.ascontiguousarray(places.runs[name]) for name in SCHEMAS["runs"].names],
            "images": [list(places.images), *([at[part] for at in places.images.values()] for part in (0, 1))],
        }
        tables = {name: _rows_of(SCHEMAS[name], values) for name, values in columns.items()}
        tables["known_groups"] = self._known_groups.encoded(state.pop("known_groups"))
        tables["arrived"] = self._arrived.encoded(state.pop("arrived"))
        body = [rows.serialize() for rows in tables.values()]
        meta = {
            "kind": "base",
            "format": FORMAT,
            "tables": {name: part.size for name, part in zip(tables, body, strict=True)},
            "layout": storage.layout,
            "next_serial": saved.next_serial,
            "sequence": sequence,
            "state": state,
        }
        writing, path = self._folder / WRITING, numbered_path(self._folder, BASE, number)
        writing.unlink(missing_ok=True)
        writer = SegmentWriter(writing, sequence=0, sync_s=SYNC_S)
        try:
            writer.append(meta, body)
            writer.close()
        except OSError:
            writer.discard()
            raise
        os.replace(writing, path)
        sync_path(self._folder)
        return path


class _Window(Generic[T]):
    """Arrow rows of a sequence that grows at its end and loses its beginning; what was there the last time doesn't become Arrow again."""

    def __init__(self, schema: pa.Schema, columns_of: Callable[[Sequence[T]], Sequence[Sequence[Any]]]) -> None:
        self._schema = schema
        self._columns_of = columns_of
        self._last: Sequence[T] = []
        self._rows = _rows_of(schema, [[] for _ in schema])

    def encoded(self, items: Sequence[T]) -> pa.RecordBatch:
        """Encode a row for each item."""
        gone = self._last.index(items[0]) if items and items[0] in self._last else len(self._last)
        kept = self._last[gone:]
        if kept != items[: len(kept)]:
            kept, gone = [], len(self._last)
        new = (items[start : start + AT_ONCE] for start in range(len(kept), len(items), AT_ONCE))
        self._rows = pa.concat_batches([self._rows.slice(gone), *(_rows_of(self._schema, self._columns_of(part)) for part in new)])
        self._last = items
        return self._rows


def _transposed(summaries: Sequence[GroupSummary]) -> list[Sequence[Any]]:
    return list(zip(*summaries, strict=True))


def read_base(path: Path, *, refuse: Callable[[str], None]) -> tuple[Saved, Places, int]:
    """Read a base and the rows that it refers to.

    Args:
        path: of the base.
        refuse: told what is damaged of the rows, in a sentence with file and offset; may raise. What is sound is kept otherwise.

    Returns:
        What was saved, where it lies, and the number of the record that follows.

    Raises:
        JournalError: when the base itself is damaged or of another format.
    """
    record = _record(path)
    tables = _tables(record)
    runs = np.empty(tables["runs"].num_rows, RUN)
    for name in SCHEMAS["runs"].names:
        runs[name] = tables["runs"].column(name).to_numpy()
    names, files, offsets = (column.to_pylist() for column in tables["images"].columns)
    places = Places(runs=runs, images=dict(zip(names, zip(files, offsets, strict=True), strict=True)))
    reader = PlacedRows(path.parent, places, refuse)
    summaries = zip(*(column.to_pylist() for column in tables["arrived"].columns), strict=True)
    state = {
        **record.meta["state"],
        "known_groups": tables["known_groups"].column("group_id").to_pylist(),
        "arrived": [GroupSummary(*values) for values in summaries],
    }
    firsts, lengths = (tables["waiting"].column(name).to_pylist() for name in ("serial", "length"))
    waiting, serials, lost = _waiting(reader, firsts, lengths, state["turns"])
    if lost:  # they may come again
        state["known_groups"] = [name for name in state["known_groups"] if name not in lost]
    known = {name: tables["rows"].column(name).to_numpy() for name in SCHEMAS["rows"].names}
    try:
        storage = Storage.rebuild(TRAJECTORY_SCHEMA, _parts(reader, known), record.meta["layout"], NARROW_COLUMNS)
    except ValueError as error:
        raise JournalError(f"{path} can't be read: {error}") from error
    saved = Saved(
        storage=storage,
        waiting=waiting,
        waiting_serials=serials,
        next_serial=record.meta["next_serial"],
        images=reader.images(),
        state=state,
    )
    return saved, places, record.meta["sequence"]


def _rows_of(schema: pa.Schema, columns: Sequence[Any]) -> pa.RecordBatch:
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _record(path: Path) -> Record:
    """A base's only record."""
    data = map_file(path)
    found = record_at(data, 0, path)
    if isinstance(found, str):
        raise JournalError(f"{path} is damaged at byte 0: {found}")
    if found.end != len(data) or found.meta.get("kind") != "base":
        raise JournalError(f"{path} is damaged at byte {found.end}: a base is one record, and nothing is behind it")
    if found.meta["format"] != FORMAT:
        raise JournalError(f"{path} is of format {found.meta['format']}, this version reads {FORMAT}")
    return found


def _tables(record: Record) -> dict[str, pa.RecordBatch]:
    tables, start = {}, 0
    for name, num_bytes in record.meta["tables"].items():
        tables[name] = pa.ipc.read_record_batch(pa.py_buffer(record.body[start : start + num_bytes]), SCHEMAS[name])
        start += num_bytes
    return tables


def _waiting(
    reader: PlacedRows, firsts: Sequence[int], lengths: Sequence[int], turns: Mapping[str, int]
) -> tuple[list[pa.RecordBatch], list[int], set[str]]:
    """The rows of the groups that waited and can be read, the number of each one's first row, and the names of the others."""
    sound = reader.sound(serials_of(firsts, lengths))
    ends = np.cumsum([0, *lengths])
    kept = [i for i in range(len(firsts)) if np.all(sound[ends[i] : ends[i + 1]])]
    rows = [reader.read(np.arange(firsts[i], firsts[i] + lengths[i])) for i in kept]
    names = {str(batch.column("group_id")[0]) for batch in rows}
    return rows, [firsts[i] for i in kept], turns.keys() - names


def _parts(reader: PlacedRows, known: Mapping[str, np.ndarray]) -> list[tuple[pa.RecordBatch, Mapping[str, np.ndarray]]]:
    """The table's rows that can be read, in batches, with what is known of them."""
    sound = np.flatnonzero(reader.sound(known["serial"]))
    chunks = [sound[start : start + ROWS_PER_RECORD] for start in range(0, len(sound), ROWS_PER_RECORD)]
    return [(reader.read(known["serial"][chunk]), {name: values[chunk] for name, values in known.items()}) for chunk in chunks]

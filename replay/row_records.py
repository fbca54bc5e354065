"""Records of a journal that hold rows: the form they have in common, and how rows are read from where they lie.

Owns the layout of such a record. Must not know what a base or a draw is, nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from algorithms.schema import TRAJECTORY_SCHEMA
from replay.journal import OPEN, ROWS, Record, map_file, numbered_files, numbered_path, record_at, segments
from replay.whereabouts import Places, of_rows


def encoded_rows(rows: pa.Buffer | None, images: Mapping[str, bytes]) -> tuple[dict[str, Any], list[Any]]:
    """Make the common part of a record.

    Args:
        rows: of TRAJECTORY_SCHEMA, as one Arrow IPC message; None: the record holds images only.
        images: by SHA-256.

    Returns:
        What JSON can hold, and buffers.
    """
    names = sorted(images)
    meta = {"rows_bytes": rows.size if rows is not None else 0, "images": [[name, len(images[name])] for name in names]}
    return meta, [*([rows] if rows is not None else []), *(images[name] for name in names)]


def first_sequence(number: int) -> int:
    """Number the records of a file of rows so that none has the number of one of another file, which may lie in the same place.

    Args:
        number: of the file, which no file had before that this one is written over.

    Returns:
        The number of its first record.
    """
    return number << 32


def rows_in(record: Record) -> pa.RecordBatch:
    """Read a record's rows; they lie where the record does.

    Args:
        record: that holds some.
    """
    return _opened(record.body[: record.meta["rows_bytes"]])


def images_in(record: Record) -> dict[str, bytes]:
    """Read a record's images.

    Args:
        record: of rows or images.

    Returns:
        Copies of their bytes by SHA-256.
    """
    images, start = {}, int(record.meta["rows_bytes"])
    for name, num_bytes in record.meta["images"]:
        images[name] = bytes(record.body[start : start + num_bytes])
        start += num_bytes
    return images


class PlacedRows:
    """Reads rows and images from where they lie; each record is checked once.

    Args:
        folder: of the journal.
        places: of the rows.
        refuse: told what is damaged, in a sentence with file and offset; may raise.
    """

    def __init__(self, folder: Path, places: Places, refuse: Callable[[str], None]) -> None:
        self._places = places
        self._refuse = refuse
        self._folder = folder
        self._records = RecordReader(folder)
        self._missing: set[int] = set()
        self._messages: dict[tuple[int, int], memoryview | None] = {}  # rows of the records that are sound

    def sound(self, serials: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which rows can be read.

        Args:
            serials: [K] of rows.

        Returns:
            [K]
        """
        runs, which = self._places.runs, self._places.find(serials)
        if np.any(which < 0):
            self._refuse(f"{self._folder} has a base that doesn't tell where {int(np.sum(which < 0))} of its rows lie")
        readable = np.zeros(len(runs) + 1, bool)  # the last: of rows that are nowhere
        used = np.unique(which[which >= 0])
        for run in used[np.lexsort((runs["offset"][used], runs["file"][used]))].tolist():  # as they lie on the disk
            readable[run] = self._holds(runs[run])
        return readable[which]

    def read(self, serials: NDArray[np.int64]) -> pa.RecordBatch:
        """Copy rows out.

        Args:
            serials: [K >= 1] of rows that are sound, in any order.

        Returns:
            [K] rows in that order, which own their memory.
        """
        which = self._places.find(serials)
        runs = self._places.runs[which]
        rows = runs["row"] + serials - runs["serial"]
        starts = np.concatenate([[0], np.flatnonzero((np.diff(which) != 0) | (np.diff(rows) != 1)) + 1])
        lengths = np.diff(starts, append=len(rows)).tolist()
        batches: dict[tuple[int, int], pa.RecordBatch] = {}
        slices = []
        for start, length in zip(starts.tolist(), lengths, strict=True):
            at = int(runs["file"][start]), int(runs["offset"][start])
            if at not in batches:
                message = self._messages[at]
                assert message is not None
                batches[at] = _opened(message)
            slices.append(batches[at].slice(int(rows[start]), length))
        # Arrow hands a lone slice back as it is, where it lies; an empty one beside it makes it a copy
        return pa.concat_batches([*slices, slices[0].slice(0, 0)])

    def images(self) -> dict[str, bytes]:
        """Copy the sound images out, by SHA-256."""
        found: dict[str, bytes] = {}
        for at in sorted(set(self._places.images.values())):
            if (record := self._record(*at)) is not None:
                found |= images_in(record)
        return {name: found[name] for name in self._places.images if name in found}

    def _holds(self, run: Any) -> bool:
        """Whether a run's rows are there."""
        at = int(run["file"]), int(run["offset"])
        if at not in self._messages:
            record = self._record(*at)
            self._messages[at] = record.body[: record.meta["rows_bytes"]] if record is not None else None
            if record is not None and rows_in(record).num_rows < int(run["row"] + run["length"]):
                self._refuse(f"{record.where} holds fewer rows than the base says")
                self._messages[at] = None
        return self._messages[at] is not None

    def _record(self, file: int, offset: int) -> Record | None:
        found = self._records.at(file, offset)
        if isinstance(found, Record):
            return found
        if file not in self._missing:
            self._refuse(f"{found}, where rows of its base lie")
        if not self._records.has(file):
            self._missing.add(file)
        return None


class RecordReader:
    """Reads a journal's records by their places.

    Args:
        folder: of the journal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = journal_files(folder)
        self._mapped: dict[int, memoryview] = {}

    def has(self, file: int) -> bool:
        """Tell whether a file is there.

        Args:
            file: what stands for it in a run.
        """
        return file in self._paths

    def at(self, file: int, offset: int) -> Record | str:
        """Read a record.

        Args:
            file: that it's in, what stands for it in a run.
            offset: where it begins.

        Returns:
            The record, or what is wrong, a sentence's beginning with file and offset.
        """
        if not self.has(file):
            return f"{self._folder} has no {name_of(file)}"
        path = self._paths[file]
        found = record_at(self._data(file), offset, path)
        number = of_rows(file)
        if isinstance(found, Record) and file < 0 and not first_sequence(number) <= found.sequence < first_sequence(number + 1):
            found = f"record {found.sequence} is of the file that was there before"
        return found if isinstance(found, Record) else f"{path} is damaged at byte {offset} ({found})"

    def holding_rows_of(self, command: Record) -> Record | str:
        """Find the record in which a command's rows lie.

        Args:
            command: of a segment.

        Returns:
            The command itself, or what it refers to; or what is wrong, as ``at`` says it.
        """
        return self.at(*command.meta["at"]) if "at" in command.meta else command

    def _data(self, file: int) -> memoryview:
        if file not in self._mapped:
            self._mapped[file] = map_file(self._paths[file])
        return self._mapped[file]


def name_of(file: int) -> str:
    """Tell a file's name for messages, whether or not it is there.

    Args:
        file: what stands for it in a run.
    """
    return numbered_path(Path(), *((OPEN, file) if file >= 0 else (ROWS, of_rows(file)))).name


def journal_files(folder: Path) -> dict[int, Path]:
    """List all files of a journal in which rows may lie.

    Args:
        folder: of the journal.

    Returns:
        Them by what stands for them in a run.
    """
    return {**segments(folder), **{of_rows(number): path for number, path in numbered_files(folder, ROWS).items()}}


def _opened(message: memoryview) -> pa.RecordBatch:
    return pa.ipc.read_record_batch(pa.py_buffer(message), TRAJECTORY_SCHEMA)

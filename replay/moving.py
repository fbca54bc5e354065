"""Rows of a journal that can't stay where they lie, copied forward into files of their own.

Owns the choice of the files to empty, and the moved rows' files. Must not know bases, commands or Ray. It's what a log-structured file
system calls cleaning: where rows leave oldest first, files die whole and nothing is moved; where they leave here and there, the emptiest
files are emptied until the rest is small enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay.journal import ROWS, numbered_path
from replay.row_records import encoded_rows, first_sequence
from replay.segments import SegmentWriter
from replay.snapshot import Saved
from replay.whereabouts import RUN, Places, of_rows, runs_of, serials_of

ROWS_PER_RECORD = 256  # of those that are moved
SYNC_S = 1.0  # of the files that nothing depends on before they are whole


def files_to_empty(sizes: Mapping[int, int], live: Mapping[int, float], *, allowed: float) -> set[int]:
    """Choose the files whose rows are copied forward, those first that give most room for what is copied.

    Args:
        sizes: of all files, bytes.
        live: of them, bytes that rows need which are there; a file without any goes anyway.
        allowed: bytes that all may have together in the end.

    Returns:
        The files to empty.
    """
    excess = sum(sizes[file] for file, needed in live.items() if needed > 0) - allowed
    chosen: set[int] = set()
    for file in sorted((file for file, needed in live.items() if needed > 0), key=lambda file: (live[file] / sizes[file], file)):
        if excess <= 0:
            break
        excess -= sizes[file] - live[file]
        chosen.add(file)
    return chosen


class MovedRows:
    """Writes rows and images into new files of a journal.

    Args:
        folder: of the journal.
        take_number: gives the number of the next file.
        file_bytes: of a file, about.
    """

    def __init__(self, folder: Path, take_number: Callable[[], int], *, file_bytes: int) -> None:
        self._folder = folder
        self._take_number = take_number
        self._file_bytes = file_bytes
        self._writer: SegmentWriter | None = None
        self._name = 0  # what stands for its file in a run
        self._written: dict[int, Path] = {}  # by what stands for them in a run
        self._runs = [np.empty(0, RUN)]
        self._images: dict[str, tuple[int, int]] = {}

    @property
    def places(self) -> Places:
        """Where all is that was written."""
        runs = np.concatenate(self._runs)
        return Places(runs=runs[np.argsort(runs["serial"])], images=self._images)

    def write(self, rows: pa.RecordBatch | None, serials: NDArray[np.int64], images: Mapping[str, bytes]) -> None:
        """Write a record.

        Args:
            rows: [K] of TRAJECTORY_SCHEMA; None: K is 0.
            serials: [K] of them.
            images: by SHA-256.

        Raises:
            OSError: when it can't be written.
        """
        if self._writer is None or self._writer.num_bytes >= self._file_bytes:
            self.close()
            number = self._take_number()
            self._name = of_rows(number)
            self._written[self._name] = numbered_path(self._folder, ROWS, number)
            self._writer = SegmentWriter(self._written[self._name], sequence=first_sequence(number), sync_s=SYNC_S)
        meta, body = encoded_rows(rows.serialize() if rows is not None else None, images)
        offset = self._writer.append({"kind": "rows", **meta}, body)
        self._runs.append(runs_of(serials, file=self._name, offset=offset))
        self._images |= dict.fromkeys(images, (self._name, offset))

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of the files, by what stands for them in a run; once they are closed."""
        return {name: path.stat().st_size for name, path in self._written.items()}

    def close(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: when the disk doesn't take it.
        """
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def discard(self) -> None:
        """Delete what was written."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None
        for path in self._written.values():
            path.unlink(missing_ok=True)


def move(saved: Saved, places: Places, sizes: Mapping[int, int], moved: MovedRows, *, spare: float, least_spare: int) -> Places:
    """Copy forward what lies nowhere yet, and what lies in files that are too empty.

    Args:
        saved: a buffer's state; rows that aren't copied can't be read from it any more, so that those which leave meanwhile free memory.
        places: of its rows; may tell those of others as well.
        sizes: of the files that may be emptied, bytes; rows in others stay where they are.
        moved: takes the copies.
        spare: bytes of the files beyond those of the rows, for each byte of the rows, that needn't be won back,
        least_spare: nor so many in any case.

    Returns:
        Where the state's rows and images lie now, and none else.

    Raises:
        OSError: when it can't be written.
    """
    storage = saved.storage
    at = storage.places
    lengths = [rows.num_rows for rows in saved.waiting]
    serials = np.concatenate([storage.column("serial")[at], serials_of(saved.waiting_serials, lengths)])
    row_bytes = [rows.nbytes / max(rows.num_rows, 1) for rows in saved.waiting]
    needed = np.concatenate([storage.column("row_bytes")[at], np.repeat(row_bytes, lengths)])
    which = places.find(serials)
    images = {name: place for name, place in places.images.items() if name in saved.images}
    live = dict.fromkeys(sizes, 0.0)
    files, inverse = np.unique(places.runs["file"][which[which >= 0]], return_inverse=True)
    for file, num_bytes in zip(files.tolist(), np.bincount(inverse, needed[which >= 0]).tolist(), strict=True):
        if file in sizes:
            live[file] += num_bytes
    for name, (file, _) in images.items():
        if file in sizes:
            live[file] += len(saved.images[name])
    emptied = files_to_empty(sizes, live, allowed=sum(live.values()) + max(spare * sum(live.values()), least_spare))
    leaving = np.isin(places.runs["file"], list(emptied))
    moves = (which < 0) | np.append(leaving, False)[which]
    storage.keep_only(at[moves[: len(at)]])
    for rows, numbers in _moving(saved, at[moves[: len(at)]], moves[len(at) :]):
        moved.write(rows, numbers, {})
    for name in sorted(saved.images):
        if name not in images or images[name][0] in emptied:
            moved.write(None, np.empty(0, np.int64), {name: saved.images[name]})
    stay = places.runs[np.unique(which[~moves])]
    runs = np.concatenate([stay, moved.places.runs])
    return Places(
        runs=runs[np.argsort(runs["serial"])],
        images={name: place for name, place in images.items() if place[0] not in emptied} | dict(moved.places.images),
    )


def _moving(saved: Saved, places: NDArray[np.int64], waiting: NDArray[np.bool_]) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64]]]:
    """Rows of the table, and of the groups that wait, with their numbers, as many at once as a record gets."""
    serials = saved.storage.column("serial")
    for start in range(0, len(places), ROWS_PER_RECORD):
        part = places[start : start + ROWS_PER_RECORD]
        yield saved.storage.gather(part), serials[part]
    start = 0
    for rows, serial in zip(saved.waiting, saved.waiting_serials, strict=True):
        if rows.num_rows and waiting[start]:
            yield rows, np.arange(serial, serial + rows.num_rows)
        start += rows.num_rows

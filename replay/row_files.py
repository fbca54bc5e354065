"""Files of a journal that hold rows alone, which are written before it is known whether the rows may come in.

Owns these files, their numbers and which of them may be touched. Must not know commands, bases, what a row means, nor Ray. An insert's rows
are many bytes, its command is few: so the rows are written while other calls change the buffer, and only the command, which says where they
lie, while none does. Rows without a command don't count; their room is won back like that of rows that left (replay/moving.py).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from replay.intake import Written
from replay.journal import ROWS, SPARE, numbered_files, numbered_path
from replay.pages import PAGE
from replay.record_file import RecordFile
from replay.row_records import encoded_rows, first_sequence
from replay.spare_files import SpareFiles
from replay.whereabouts import of_rows


class RowFiles:
    """The rows' files of a journal; any thread may write, each to a file of its own.

    Args:
        folder: of the journal.
        spares: files to write over.
    """

    def __init__(self, folder: Path, spares: SpareFiles) -> None:
        self._folder = folder
        self._spares = spares
        files = numbered_files(folder, ROWS)
        self._next_number = max([*files, *numbered_files(folder, SPARE)], default=-1) + 1
        self._ended = {of_rows(number): path.stat().st_size for number, path in files.items()}
        self._open: dict[int, RecordFile] = {}
        self._idle: list[int] = []  # of the open ones, those that no thread writes to
        self._dirty: dict[int, RecordFile] = {}  # what the disk may not have yet
        self._unsettled: Counter[int] = Counter()  # records of a file that may still come in
        self._lock = threading.Lock()  # of all these
        self._writing = threading.Lock()  # one writes at a time: a device that is never idle doesn't get to an fsync for long
        self._on_disk = threading.Lock()  # one brings files to the disk, or closes them, at a time
        self._failure: OSError | None = None  # the disk didn't take something

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        with self._lock:
            return sum(self._ended.values()) + sum(file.disk_bytes for file in self._open.values())

    def write(self, rows: pa.Buffer, *, file_bytes: int) -> Written:
        """Write rows that may come in; ``settle`` is to follow.

        Args:
            rows: of TRAJECTORY_SCHEMA, as one Arrow IPC message.
            file_bytes: size at which a file ends.

        Returns:
            Where they lie.

        Raises:
            OSError: when they can't be written.
        """
        with self._lock:
            name = self._idle.pop() if self._idle else self._begin()
            file = self._open[name]
            self._unsettled[name] += 1
        meta, body = encoded_rows(rows, {})
        try:
            offset = file.append({"kind": "rows", **meta}, body)
        except OSError:
            with self._lock:
                self._unsettled[name] -= 1
            raise
        finally:
            with self._lock:
                self._dirty[name] = file
                if file.is_sound and file.num_bytes < file_bytes:
                    self._idle.append(name)
                else:
                    self._ended[name] = self._open.pop(name).disk_bytes
        return Written(file=name, offset=offset)

    def settle(self, written: Written) -> None:
        """Note that rows have come in, or never will.

        Args:
            written: of write, once.
        """
        with self._lock:
            self._unsettled[written.file] -= 1

    def take_number(self) -> int:
        """Number a file that somebody else writes."""
        with self._lock:
            self._next_number += 1
            return self._next_number - 1

    def settled(self) -> dict[int, int]:
        """Tell which files don't change any more, by rows that are written or that come in.

        Returns:
            Bytes of each, by what stands for it in a run.
        """
        with self._lock:
            return {name: num_bytes for name, num_bytes in self._ended.items() if not self._unsettled[name]}

    def add(self, sizes: Mapping[int, int]) -> None:
        """Note files that somebody else has written, and that are on the disk.

        Args:
            sizes: bytes of each, by what stands for it in a run.
        """
        with self._lock:
            self._ended |= sizes

    def forget(self, names: Iterable[int]) -> None:
        """Note that files were deleted.

        Args:
            names: what stands for them in a run; others are passed over.
        """
        with self._lock:
            for name in names:
                self._ended.pop(name, None)
                self._unsettled.pop(name, None)

    def sync(self) -> None:
        """Bring everything to the disk that has been written before.

        Raises:
            OSError: when the disk doesn't take it.
        """
        with self._on_disk:
            if self._failure is not None:  # asked again, the system may say that all is well
                raise OSError(self._failure.errno, f"{self._folder} can't be relied on any more: {self._failure.strerror}")
            with self._lock:
                dirty, self._dirty = self._dirty, {}
                ended = dirty.keys() - self._open.keys()  # to which nothing is added while they are brought to the disk
            try:
                for name, file in dirty.items():
                    file.sync()
                    if name in ended:
                        file.close()
            except OSError as error:
                self._failure = error
                raise
        self._spares.trim()  # here, because a large file takes a disk some time and no call should wait for that

    def close(self) -> None:
        """Bring everything to the disk and end.

        Raises:
            OSError: when the disk doesn't take it.
        """
        self.sync()
        with self._on_disk, self._lock:
            for file in self._open.values():
                file.close()

    def _begin(self) -> int:
        """Make the next file; what stands for it in a run."""
        number = self._next_number
        self._next_number += 1
        path = numbered_path(self._folder, ROWS, number)
        over_bytes = self._spares.take(path)
        self._open[of_rows(number)] = RecordFile(
            path, sequence=first_sequence(number), over_bytes=over_bytes, alignment=PAGE, writing=self._writing
        )
        return of_rows(number)

"""Writing a journal: records are appended to numbered segments, which threads bring to the disk.

Owns the files while they are written, fsync and its order. Must not know what a record means, nor Ray.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from replay.journal import OPEN, SEALED, numbered_path, sync_path
from replay.record_file import RecordFile


class SegmentWriter:
    """Appends records to a new file; a thread brings them to the disk.

    ``append`` returns once the operating system has the record, which then outlives this process; the disk has it at most ``sync_s`` later,
    so that one fsync serves all records of that time.

    Args:
        path: made; it must not exist.
        sequence: of the first record.
        sync_s: longest time until the disk itself holds a record.
        sync_before: brings to the disk what the records refer to, in any thread.
    """

    def __init__(self, path: Path, *, sequence: int, sync_s: float, sync_before: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._sync_s = sync_s
        self._sync_before = sync_before
        self._file = RecordFile(path, sequence=sequence)
        self.synced = sequence  # of the first record that the disk may not have
        self._on_disk = threading.Lock()  # one brings the file to the disk, or closes it, at a time
        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._sealed_path: Path | None = None  # to be had when all is on the disk
        self._syncing = threading.Thread(target=self._sync_often, name="journal-sync", daemon=True)
        self._syncing.start()

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return self._file.num_bytes

    @property
    def sequence(self) -> int:
        """Of the next record."""
        return self._file.sequence

    @property
    def is_busy(self) -> bool:
        """Whether the thread has something to do yet; after seal: whether the file isn't sealed yet."""
        return self._syncing.is_alive()

    def check(self) -> None:
        """Refuse to go on after a failure; see RecordFile.check."""
        self._file.check()

    def append(self, meta: dict[str, Any], body: Sequence[Any] = ()) -> int:
        """Write a record; see RecordFile.append."""
        offset = self._file.append(meta, body)
        self._dirty.set()
        return offset

    def sync(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: when the disk doesn't take it.
        """
        with self._on_disk:
            written = self.sequence
            self._sync_before()
            self._file.sync()
            self.synced = written

    def seal(self, path: Path) -> None:
        """End the file in the thread: once the disk has all of it, it gets another name.

        Args:
            path: the name that only a whole file has.
        """
        self._sealed_path = path
        self._end()

    def wait(self) -> None:
        """Wait for what ``seal`` has begun.

        Raises:
            OSError: when the disk didn't take it.
        """
        self._syncing.join()
        self.check()

    def close(self) -> None:
        """Bring everything to the disk and end, under the same name.

        Raises:
            OSError: when the disk doesn't take it.
        """
        self._end()
        self._syncing.join()
        self.sync()
        self._close()

    def discard(self) -> None:
        """End, and delete the file."""
        self._end()
        self._syncing.join()
        self._close()
        self.path.unlink(missing_ok=True)

    def _end(self) -> None:
        self._ending.set()
        self._dirty.set()

    def _close(self) -> None:
        with self._on_disk:
            self._file.close()

    def _sync_often(self) -> None:
        try:
            while True:
                self._dirty.wait()
                if self._ending.is_set():
                    break
                begin = time.monotonic()
                self._dirty.clear()
                self.sync()
                self._ending.wait(max(0.0, self._sync_s / 2 - (time.monotonic() - begin)))  # half of the time is the fsync's
            if self._sealed_path is not None:
                self.sync()
                self._close()
                os.rename(self.path, self._sealed_path)
        except OSError as error:
            self._file.fail(error)


class Segments:
    """The segments of a journal, of which the newest is written.

    A segment that ends is brought to the disk and sealed in a thread, while the next one is written; until then there is no third.

    Args:
        folder: of the journal.
        number: of the first segment.
        sequence: of the first record.
        sync_s: see SegmentWriter.
        sync_before: see SegmentWriter.
        start: the first record of each segment, what JSON can hold.

    Raises:
        OSError: when it can't be written.
    """

    def __init__(
        self, folder: Path, *, number: int, sequence: int, sync_s: float, sync_before: Callable[[], None], start: dict[str, Any]
    ) -> None:
        self._folder = folder
        self._sync_s = sync_s
        self._sync_before = sync_before
        self._start = start
        self._ending: SegmentWriter | None = None
        self._writer = self._open(number, sequence)
        self.number = number

    @property
    def num_bytes(self) -> int:
        """Of the segment that is written."""
        return self._writer.num_bytes

    @property
    def sequence(self) -> int:
        """Of the next record."""
        return self._writer.sequence

    @property
    def synced(self) -> int:
        """Of the first record that the disk may not have."""
        return self._ending.synced if self._ending is not None and self._ending.is_busy else self._writer.synced

    @property
    def may_rotate(self) -> bool:
        """Whether a next segment may be begun without waiting for the disk."""
        return self._ending is None or not self._ending.is_busy

    def append(self, meta: dict[str, Any], body: Sequence[Any] = ()) -> int:
        """Write a record to the newest segment, whole or not at all; see SegmentWriter.append."""
        if self._ending is not None:
            self._ending.check()
        return self._writer.append(meta, body)

    def rotate(self) -> None:
        """Begin the next segment; waits for the disk unless ``may_rotate``.

        Raises:
            OSError: when it can't be written, or the disk didn't take one before; everything is as it was.
        """
        if self._ending is not None:
            self._ending.wait()
        following = self._open(self.number + 1, self._writer.sequence)
        self._ending, self._writer = self._writer, following
        self._ending.seal(numbered_path(self._folder, SEALED, self.number))
        self.number += 1

    def wait_sealed(self) -> None:
        """Wait until every segment but the newest is sealed; in any thread.

        Raises:
            OSError: when the disk doesn't take one.
        """
        if self._ending is not None:
            self._ending.wait()

    def sync(self) -> None:
        """Bring everything to the disk; in any thread.

        Raises:
            OSError: when the disk doesn't take it.
        """
        self.wait_sealed()
        self._writer.sync()

    def close(self) -> None:
        """Bring everything to the disk and end.

        Raises:
            OSError: when the disk doesn't take it.
        """
        self.wait_sealed()
        self._writer.close()

    def _open(self, number: int, sequence: int) -> SegmentWriter:
        path = numbered_path(self._folder, OPEN, number)
        writer = SegmentWriter(path, sequence=sequence, sync_s=self._sync_s, sync_before=self._sync_before)
        try:
            writer.append(self._start)
        except OSError:
            writer.discard()
            raise
        return writer


def seal(path: Path, sealed: Path) -> None:
    """Seal a segment that a former process left open.

    Args:
        path: of it.
        sealed: its new name.

    Raises:
        OSError: when the disk doesn't take it.
    """
    sync_path(path)
    os.rename(path, sealed)

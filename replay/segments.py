"""Writing a journal: records are appended to numbered segments, which threads bring to the disk.

Owns the files while they are written, fsync and its order. Must not know what a record means, nor Ray.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from replay.journal import CHECKSUM, FIELDS, HEADER_BYTES, MAGIC, OPEN, SEALED, numbered_path, sync_path
from replay.journal_file import JournalFile

ALIGNMENT = 64  # of a record's body: Arrow reads rows where they lie


class SegmentWriter:
    """Appends records to a new file; a thread brings them to the disk.

    ``append`` returns once the operating system has the record, which then outlives this process; the disk has it at most ``sync_s`` later,
    so that one fsync serves all records of that time.

    Args:
        path: made; it must not exist.
        sequence: of the first record.
        sync_s: longest time until the disk itself holds a record.
    """

    def __init__(self, path: Path, *, sequence: int, sync_s: float) -> None:
        self.path = path
        self.sequence = sequence
        self._sync_s = sync_s
        self._file = JournalFile(path)
        self._size = 0
        self._on_disk = threading.Lock()  # one brings the file to the disk, or closes it, at a time
        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._sealed_path: Path | None = None  # to be had when all is on the disk
        self._failure: OSError | None = None
        self._syncing = threading.Thread(target=self._sync_often, name="journal-sync", daemon=True)
        self._syncing.start()

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return self._size

    @property
    def is_busy(self) -> bool:
        """Whether the thread has something to do yet; after seal: whether the file isn't sealed yet."""
        return self._syncing.is_alive()

    def check(self) -> None:
        """Refuse to go on after a failure.

        Raises:
            OSError: when the disk didn't take what was written before.
        """
        if self._failure is not None:
            raise OSError(self._failure.errno, f"{self.path} can't be relied on any more: {self._failure.strerror}")

    def append(self, meta: dict[str, Any], body: Sequence[Any] = ()) -> int:
        """Write a record, whole or not at all.

        Args:
            meta: what JSON can hold.
            body: buffers, written one behind the other.

        Returns:
            Where in the file it begins.

        Raises:
            OSError: when the disk is full or can't be written, now or at an earlier fsync; the file is as before.
        """
        self.check()
        offset = self._size
        text = json.dumps(meta).encode()
        text += b" " * (-(offset + HEADER_BYTES + len(text)) % ALIGNMENT)
        digest = xxhash.xxh3_64(text)
        views = [memoryview(part).cast("B") for part in body]
        for view in views:
            digest.update(view)
        body_bytes = sum(map(len, views))
        fields = FIELDS.pack(MAGIC, 0, self.sequence, len(text), body_bytes, digest.intdigest())
        header = fields + CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields))
        try:
            self._file.write([memoryview(header), memoryview(text), *views], offset)
        except OSError as error:
            try:
                self._file.truncate(offset)
            except OSError as second:  # what was written of the record stays, so nothing may follow it
                self._failure = second
            raise OSError(error.errno, f"{self.path} can't be written: {error.strerror}") from error
        self._size += HEADER_BYTES + len(text) + body_bytes
        self.sequence += 1
        self._dirty.set()
        return offset

    def sync(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: when the disk doesn't take it.
        """
        with self._on_disk:
            self._file.sync()

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
                self._ending.wait(max(0.0, self._sync_s / 2 - (time.monotonic() - begin)))
            if self._sealed_path is not None:
                self.sync()
                self._close()
                os.rename(self.path, self._sealed_path)
        except OSError as error:
            self._failure = error


class Segments:
    """The segments of a journal, of which the newest is written.

    A segment that ends is brought to the disk and sealed in a thread, while the next one is written; until then there is no third.

    Args:
        folder: of the journal.
        number: of the first segment.
        sequence: of the first record.
        sync_s: see SegmentWriter.
        start: the first record of each segment, what JSON can hold.

    Raises:
        OSError: when it can't be written.
    """

    def __init__(self, folder: Path, *, number: int, sequence: int, sync_s: float, start: dict[str, Any]) -> None:
        self._folder = folder
        self._sync_s = sync_s
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
        writer = SegmentWriter(numbered_path(self._folder, OPEN, number), sequence=sequence, sync_s=self._sync_s)
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

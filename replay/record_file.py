"""Appending records to a file, each whole or not at all.

Owns the form in which a record is written (replay/journal.py reads it) and what a failed write leaves behind. Must not know what a record
means, when the disk gets it, nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import xxhash

from replay.journal import CHECKSUM, FIELDS, HEADER_BYTES, MAGIC
from replay.journal_file import JournalFile

ALIGNMENT = 64  # of a record's body: Arrow reads rows where they lie


class RecordFile:
    """A file of records, from its beginning; one thread appends, any thread may bring them to the disk.

    Args:
        path: of it; made, and it must not exist, unless it is written over.
        sequence: of the first record.
        over_bytes: of a file that is there, and is written over; None: a new one.
        alignment: of the records' bodies in the file, bytes.
        writing: held while a record goes to the disk, but not while its checksum is taken.

    Raises:
        OSError: when it can't be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        sequence: int = 0,
        over_bytes: int | None = None,
        alignment: int = ALIGNMENT,
        writing: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.path = path
        self.sequence = sequence
        self.num_bytes = 0
        self._over_bytes = over_bytes or 0
        self._alignment = alignment
        self._writing = writing if writing is not None else nullcontext()
        self._file = JournalFile(path, over=over_bytes is not None)
        self._failure: OSError | None = None

    def append(self, meta: dict[str, Any], body: Sequence[Any] = ()) -> int:
        """Write a record.

        Args:
            meta: what JSON can hold.
            body: buffers, written one behind the other.

        Returns:
            Where in the file it begins.

        Raises:
            OSError: when the disk is full or can't be written, now or at an earlier fsync; the file is as before.
        """
        self.check()
        offset = self.num_bytes
        text = json.dumps(meta).encode()
        text += b" " * (-(offset + HEADER_BYTES + len(text)) % self._alignment)
        digest = xxhash.xxh3_64(text)
        views = [memoryview(part).cast("B") for part in body]
        for view in views:
            digest.update(view)
        body_bytes = sum(map(len, views))
        fields = FIELDS.pack(MAGIC, 0, self.sequence, len(text), body_bytes, digest.intdigest())
        header = fields + CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields))
        try:
            with self._writing:
                self._file.write([memoryview(header), memoryview(text), *views], offset)
        except OSError as error:
            try:
                self._file.truncate(offset)
                self._over_bytes = 0
            except OSError as second:  # what was written of the record stays, so nothing may follow it
                self.fail(second)
            raise OSError(error.errno, f"{self.path} can't be written: {error.strerror}") from error
        self.num_bytes += HEADER_BYTES + len(text) + body_bytes
        self.sequence += 1
        return offset

    @property
    def disk_bytes(self) -> int:
        """Of the file, what isn't written over yet included."""
        return max(self.num_bytes, self._over_bytes)

    @property
    def is_sound(self) -> bool:
        """Whether the file takes more records."""
        return self._failure is None

    def check(self) -> None:
        """Refuse to go on after a failure.

        Raises:
            OSError: when the disk didn't take what was written before.
        """
        if self._failure is not None:
            raise OSError(self._failure.errno, f"{self.path} can't be relied on any more: {self._failure.strerror}")

    def fail(self, error: OSError) -> None:
        """Take no more records.

        Args:
            error: why not.
        """
        self._failure = error

    def sync(self) -> None:
        """Bring everything to the disk; nothing when it's closed.

        Raises:
            OSError: when the disk doesn't take it.
        """
        self._file.sync()

    def close(self) -> None:
        """Close the file, if it's open."""
        self._file.close()

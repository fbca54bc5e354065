"""An append-only journal: records with checksums in numbered segment files.

Owns the bytes on disk. Must not know what a record means, nor Ray. A record is a header of 48 bytes, JSON, and a body, which for rows is an
Arrow IPC message. A record that runs past the end of the last segment was never acknowledged: it is torn, and cut. Anything else that
doesn't fit its checksums is damage.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

MAGIC = b"RTJ1"
FIELDS = struct.Struct("<4sIQQQQ")  # magic, 0, sequence number, bytes of the JSON, bytes of the body, checksum of both
CHECKSUM = struct.Struct("<Q")  # of the fields before it
HEADER_BYTES = FIELDS.size + CHECKSUM.size
SUFFIX = ".journal"


class JournalError(RuntimeError):
    """A journal is damaged, or belongs to something else."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was appended at once."""

    sequence: int  # counts the records of a journal, over all segments
    meta: dict[str, Any]
    body: memoryview
    where: str  # file and offset, for messages


def segment_path(folder: Path, number: int) -> Path:
    """Name a segment's file."""
    return folder / f"segment-{number:08d}{SUFFIX}"


def segment_numbers(folder: Path) -> list[int]:
    """List the segments of a folder.

    Args:
        folder: of a journal; may be missing.

    Returns:
        Their numbers, rising.
    """
    return sorted(int(path.name[len("segment-") : -len(SUFFIX)]) for path in folder.glob(f"segment-*{SUFFIX}"))


class SegmentWriter:
    """Appends records to a new segment; a thread brings them to the disk.

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
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._size = 0
        self._dirty = threading.Event()
        self._closed = False
        self._failure: OSError | None = None
        sync_folder(path.parent)
        self._syncing = threading.Thread(target=self._sync_often, name="journal-sync", daemon=True)
        self._syncing.start()

    @property
    def num_bytes(self) -> int:
        """Of the segment."""
        return self._size

    def append(self, meta: dict[str, Any], body: Sequence[Any] = ()) -> None:
        """Write a record, whole or not at all.

        Args:
            meta: what JSON can hold.
            body: buffers, written one behind the other.

        Raises:
            OSError: when the disk is full or can't be written, now or at an earlier fsync; the segment is as before.
        """
        if self._failure is not None:
            raise OSError(self._failure.errno, f"{self.path} can't be relied on any more: {self._failure.strerror}")
        text = json.dumps(meta).encode()
        digest = xxhash.xxh3_64(text)
        views = [memoryview(part).cast("B") for part in body]
        for view in views:
            digest.update(view)
        fields = FIELDS.pack(MAGIC, 0, self.sequence, len(text), sum(map(len, views)), digest.intdigest())
        header = fields + CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields))
        try:
            self._write([memoryview(header), memoryview(text), *views])
        except OSError as error:
            try:
                os.ftruncate(self._file, self._size)
            except OSError as second:  # what was written of the record stays, so nothing may follow it
                self._failure = second
            raise OSError(error.errno, f"{self.path} can't be written: {error.strerror}") from error
        self._size += HEADER_BYTES + len(text) + sum(map(len, views))
        self.sequence += 1
        self._dirty.set()

    def sync(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: when the disk doesn't take it.
        """
        os.fsync(self._file)

    def close(self) -> None:
        """Bring everything to the disk and end.

        Raises:
            OSError: when the disk doesn't take it.
        """
        self._closed = True
        self._dirty.set()
        self._syncing.join()
        os.fsync(self._file)
        os.close(self._file)

    def _write(self, views: list[memoryview]) -> None:
        pending = [view for view in views if len(view)]
        while pending:
            written = os.writev(self._file, pending[:512])
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]

    def _sync_often(self) -> None:
        while True:
            self._dirty.wait()
            if self._closed:
                return
            begin = time.monotonic()
            self._dirty.clear()
            try:
                os.fsync(self._file)
            except OSError as error:
                self._failure = error
                return
            time.sleep(max(0.0, self._sync_s / 2 - (time.monotonic() - begin)))


def read_segment(path: Path, *, last: bool, strict: bool = True, problems: list[str] | None = None) -> Iterator[Record]:
    """Read a segment's records.

    Args:
        path: of the segment.
        last: whether it's the newest one, whose end may be torn; a torn end is cut off the file.
        strict: False: skip what is damaged and go on behind it.
        problems: gets a sentence for all that was skipped.

    Yields:
        The sound records.

    Raises:
        JournalError: for damage, naming file and offset, if strict.
    """
    size = path.stat().st_size
    if size == 0:
        return
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    offset = 0
    while offset < len(data):
        found = _record_at(data, offset, path)
        if isinstance(found, Record):
            yield found
            offset += HEADER_BYTES + int(found.meta.pop("_bytes"))
            continue
        if last and _is_torn(data, offset):
            os.truncate(path, offset)
            return
        if strict:
            raise JournalError(f"{path} is damaged at byte {offset}: {found}")
        if problems is not None:
            problems.append(f"{path} at byte {offset}: {found}")
        offset = _next_record(data, offset + 1, path)


def sync_folder(folder: Path) -> None:
    """Ask the disk to hold a folder's names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _record_at(data: memoryview, offset: int, path: Path) -> Record | str:
    """The record, or what is wrong with it."""
    if offset + HEADER_BYTES > len(data):
        return f"{len(data) - offset} bytes are no header"
    fields = data[offset : offset + FIELDS.size]
    (checksum,) = CHECKSUM.unpack_from(data, offset + FIELDS.size)
    if xxhash.xxh3_64_intdigest(fields) != checksum:
        return "the header doesn't fit its checksum"
    magic, _, sequence, text_bytes, body_bytes, payload_checksum = FIELDS.unpack(fields)
    if magic != MAGIC:
        return f"the record is of format {magic!r}, this version reads {MAGIC!r}"
    start = offset + HEADER_BYTES
    if start + text_bytes + body_bytes > len(data):
        return f"the record needs {text_bytes + body_bytes} bytes, {len(data) - start} are there"
    payload = data[start : start + text_bytes + body_bytes]
    if xxhash.xxh3_64_intdigest(payload) != payload_checksum:
        return f"record {sequence} doesn't fit its checksum"
    meta = {**json.loads(bytes(payload[:text_bytes])), "_bytes": text_bytes + body_bytes}
    return Record(sequence=sequence, meta=meta, body=payload[text_bytes:], where=f"{path} at byte {offset}")


def _is_torn(data: memoryview, offset: int) -> bool:
    """Whether the rest is a record that was being written: a part of one, or places that the disk never filled."""
    rest = data[offset:]
    if len(rest) < HEADER_BYTES:
        return MAGIC.startswith(bytes(rest[:4])) or not any(rest)
    fields = rest[: FIELDS.size]
    if xxhash.xxh3_64_intdigest(fields) == CHECKSUM.unpack_from(rest, FIELDS.size)[0]:
        magic, _, _, text_bytes, body_bytes, _ = FIELDS.unpack(fields)
        return bool(magic == MAGIC and HEADER_BYTES + text_bytes + body_bytes > len(rest))
    return not any(rest)


def _next_record(data: memoryview, offset: int, path: Path) -> int:
    """Where the next sound record begins, or the end."""
    content = bytes(data)
    while (offset := content.find(MAGIC, offset)) >= 0:
        if isinstance(_record_at(data, offset, path), Record):
            return offset
        offset += 1
    return len(data)

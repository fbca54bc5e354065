"""A journal's records with checksums, the names of its files, and how they are read back.

Owns the form of the bytes on disk. Must not know what a record means, nor Ray. A record is a header of 48 bytes, JSON, and a body, which
for rows is an Arrow IPC message; blanks behind the JSON let the body begin at a multiple of 64 bytes. A segment is open until all of it is
on the disk, and sealed then. A record that runs past the end of an open segment was never acknowledged, or is younger than the last fsync:
it is torn, and cut. Anything else that doesn't fit its checksums is damage.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

MAGIC = b"RTJ1"
FIELDS = struct.Struct("<4sIQQQQ")  # magic, 0, sequence number, bytes of the JSON, bytes of the body, checksum of both
CHECKSUM = struct.Struct("<Q")  # of the fields before it
HEADER_BYTES = FIELDS.size + CHECKSUM.size
SUFFIX = ".journal"
OPEN, SEALED, ROWS, SPARE, BASE = "segment", "sealed", "rows", "spare", "base"  # what the names of files begin with


class JournalError(RuntimeError):
    """A journal is damaged, or belongs to something else."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was appended at once."""

    sequence: int  # counts the records of a journal, over all segments
    meta: dict[str, Any]
    body: memoryview
    path: Path
    offset: int
    end: int  # where the next one begins

    @property
    def where(self) -> str:
        """File and offset, for messages."""
        return f"{self.path} at byte {self.offset}"


def numbered_path(folder: Path, kind: str, number: int) -> Path:
    """Name a file.

    Args:
        folder: of the journal.
        kind: OPEN, SEALED, ROWS, SPARE or BASE.
        number: >= 0.

    Returns:
        Where it is or would be.
    """
    return folder / f"{kind}-{number:08d}{SUFFIX}"


def numbered_files(folder: Path, kind: str) -> dict[int, Path]:
    """List a folder's files of one kind; see numbered_path.

    Args:
        folder: of a journal; may be missing.
        kind: of the files.

    Returns:
        Them by rising number.
    """
    return dict(sorted((int(path.name[len(kind) + 1 : -len(SUFFIX)]), path) for path in folder.glob(f"{kind}-*{SUFFIX}")))


def segments(folder: Path) -> dict[int, Path]:
    """List a folder's segments, open and sealed.

    Args:
        folder: of a journal; may be missing.

    Returns:
        Them by rising number.
    """
    return dict(sorted({**numbered_files(folder, OPEN), **numbered_files(folder, SEALED)}.items()))


def is_sealed(path: Path) -> bool:
    """Tell whether all of a segment is on the disk, so that its end can't be torn."""
    return path.name.startswith(SEALED)


def map_file(path: Path) -> memoryview:
    """Map a file for reading; what was mapped stays readable when the file is deleted.

    Args:
        path: of it.

    Raises:
        OSError: when it can't be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)) if size else memoryview(b"")


def read_segment(path: Path, *, last: bool, strict: bool = True, problems: list[str] | None = None) -> Iterator[Record]:
    """Read a segment's records.

    Args:
        path: of the segment.
        last: whether its end may be torn, as that of an open segment may; a torn end is cut off the file.
        strict: False: skip what is damaged and go on behind it.
        problems: gets a sentence for all that was skipped.

    Yields:
        The sound records.

    Raises:
        JournalError: for damage, naming file and offset, if strict.
    """
    data = map_file(path)
    offset = 0
    while offset < len(data):
        found = record_at(data, offset, path)
        if isinstance(found, Record):
            yield found
            offset = found.end
            continue
        if last and is_torn(data, offset):
            os.truncate(path, offset)
            return
        if strict:
            raise JournalError(f"{path} is damaged at byte {offset}: {found}")
        if problems is not None:
            problems.append(f"{path} at byte {offset}: {found}")
        offset = _next_record(data, offset + 1, path)


def record_at(data: memoryview, offset: int, path: Path) -> Record | str:
    """Read one record.

    Args:
        data: of the file.
        offset: where the record begins.
        path: of the file, for messages.

    Returns:
        The record, or what is wrong with it.
    """
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
    meta, end = json.loads(bytes(payload[:text_bytes])), start + text_bytes + body_bytes
    return Record(sequence=sequence, meta=meta, body=payload[text_bytes:], path=path, offset=offset, end=end)


def is_torn(data: memoryview, offset: int) -> bool:
    """Tell a record that was being written from one that is damaged.

    Args:
        data: of the file.
        offset: where the record would begin; may be past the end.

    Returns:
        Whether what is there is a part of a record and nothing else, or places that the disk never filled.
    """
    rest = data[offset:]
    if len(rest) < HEADER_BYTES:
        return MAGIC.startswith(bytes(rest[:4])) or not any(rest)
    fields = rest[: FIELDS.size]
    if xxhash.xxh3_64_intdigest(fields) == CHECKSUM.unpack_from(rest, FIELDS.size)[0]:
        magic, _, _, text_bytes, body_bytes, _ = FIELDS.unpack(fields)
        return bool(magic == MAGIC and HEADER_BYTES + text_bytes + body_bytes > len(rest))
    return not any(rest)


def sync_path(path: Path) -> None:
    """Ask the disk to hold a file, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _next_record(data: memoryview, offset: int, path: Path) -> int:
    """Where the next sound record begins, or the end."""
    content = bytes(data)
    while (offset := content.find(MAGIC, offset)) >= 0:
        if isinstance(record_at(data, offset, path), Record):
            return offset
        offset += 1
    return len(data)

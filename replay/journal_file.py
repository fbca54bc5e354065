"""A file that grows at its end; large writes go past the page cache.

Owns the file's handles and the split of a write by pages. Must not know records, threads or Ray. What goes through the page cache takes
memory that the kernel has to find, to write back and to give up again: for a journal, which is next to never read, that is most of what
writing costs. Pages that a write fills from end to end are therefore written directly (O_DIRECT), where the file system can do that; what
is before and behind them goes the usual way, so that no page is ever written both ways.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from replay.journal import sync_path
from replay.pages import PAGE

DIRECT_FROM = 256 * 2**10  # bytes of a write: a direct one waits for the device, and small ones come from threads that mustn't
PIECE = 4 * 2**20  # bytes that go to the device at once, from memory that begins with a page; smaller ones wait for it more often
WRITEV_BUFFERS = 512  # at once; the system's limit is 1024

_NOTHING = memoryview(b"")


class JournalFile:
    """A file that is written from its beginning.

    Args:
        path: of it.
        over: it's there, and is written over; False: it's made, and must not exist.

    Raises:
        OSError: when it can't be made, or opened.
    """

    def __init__(self, path: Path, *, over: bool = False) -> None:
        self._path = path
        self._file: int | None = os.open(path, os.O_WRONLY | (0 if over else os.O_CREAT | os.O_EXCL))
        self._direct: int | None = None
        self._piece: mmap.mmap | None = None
        self._named = False  # whether the disk holds the file's name
        self._may_be_direct = True

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """Write buffers one behind the other.

        Args:
            views: of bytes.
            offset: the end of what was written before.

        Raises:
            OSError: when they can't be written; the file may have grown all the same.
        """
        end = offset + sum(map(len, views))
        first, last = -(-offset // PAGE) * PAGE, end // PAGE * PAGE  # whole pages
        if end - offset < DIRECT_FROM or not self._opens_directly():
            self._write(_cut(views, 0, end - offset), offset)
            return
        self._write(_cut(views, 0, first - offset), offset)
        self._write_directly(_cut(views, first - offset, last - offset), first)
        self._write(_cut(views, last - offset, end - offset), last)

    def truncate(self, size: int) -> None:
        """Take back what is behind a size.

        Raises:
            OSError: when that can't be done.
        """
        os.ftruncate(self._handle(), size)

    def sync(self) -> None:
        """Bring the file and its name to the disk; nothing when it's closed.

        Raises:
            OSError: when the disk doesn't take it.
        """
        if self._file is None:
            return
        os.fsync(self._file)
        if not self._named:
            sync_path(self._path.parent)
            self._named = True

    def close(self) -> None:
        """Close the file, if it's open."""
        for handle in (self._file, self._direct):
            if handle is not None:
                os.close(handle)
        self._file = self._direct = self._piece = None

    def _handle(self) -> int:
        if self._file is None:
            raise OSError(errno.EBADF, f"{self._path} was closed")
        return self._file

    def _opens_directly(self) -> bool:
        """Whether the file system writes past the page cache."""
        if self._direct is None and self._may_be_direct:
            try:
                self._direct = os.open(self._path, os.O_WRONLY | os.O_DIRECT)
            except OSError:  # memory file systems can't; whatever else is wrong with the file, the usual way tells
                self._may_be_direct = False
        return self._may_be_direct

    def _write_directly(self, views: list[memoryview], offset: int) -> None:
        """Write whole pages from aligned memory: what isn't is copied there first."""
        if self._piece is None:
            self._piece = mmap.mmap(-1, PIECE)
        room, filled = np.frombuffer(self._piece, np.uint8), 0
        for view in views:
            while len(view):
                if filled % PAGE == 0 and (part := _aligned(view)):
                    offset, filled = self._flush(filled, offset, part), 0
                else:
                    part = view[: PIECE - filled]
                    np.copyto(room[filled : filled + len(part)], np.frombuffer(part, np.uint8))  # without the lock of the interpreter
                    filled += len(part)
                view = view[len(part) :]
                if filled == PIECE:
                    offset, filled = self._flush(filled, offset), 0
        self._flush(filled, offset)

    def _flush(self, num_bytes: int, offset: int, aligned: memoryview = _NOTHING) -> int:
        """Write the beginning of the aligned memory, and whole pages that lie elsewhere; where they end."""
        assert self._piece is not None
        with memoryview(self._piece) as piece:
            pending, end = [piece[:num_bytes], aligned], offset + num_bytes + len(aligned)
            if self._may_be_direct and end > offset:
                assert self._direct is not None
                try:
                    written = os.pwritev(self._direct, pending, offset)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # the device wants larger blocks than pages
                        raise
                    self._may_be_direct, written = False, 0
                pending, offset = _cut(pending, written, end - offset), offset + written
            self._write(pending, offset)  # a direct write comes short when the disk is full, and then this one says so
            return end

    def _write(self, views: Sequence[memoryview], offset: int) -> None:
        pending = [view for view in views if len(view)]
        while pending:
            written = os.pwritev(self._handle(), pending[:WRITEV_BUFFERS], offset)
            offset += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]


def _cut(views: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """What lies between two places of buffers that lie one behind the other."""
    found = []
    for view in views:
        if part := view[max(start, 0) : max(end, 0)]:
            found.append(part)
        start, end = start - len(view), end - len(view)
    return found


def _aligned(view: memoryview) -> memoryview:
    """The whole pages at the beginning of a buffer, if it begins with a page."""
    begins = len(view) >= PAGE and np.frombuffer(view, np.uint8).ctypes.data % PAGE == 0
    return view[: len(view) // PAGE * PAGE] if begins else _NOTHING

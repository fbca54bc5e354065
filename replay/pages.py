"""Memory for rows in whole pages, which is used again when the rows have left.

Owns blocks of memory and which of them are free. Must not know what lies in them, nor Ray. An allocator keeps what was freed in pieces that
the next rows may not fit into, and new pages cost as much as the copy into them. A block that begins with a page can go to the disk as it
lies (replay/journal_file.py). All in all a pool holds no more than was in use at the same time a while ago, so that inserts which come and
go beside each other find their memory again, and a table that became smaller gives it back.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import weakref
from collections import OrderedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
WORTHWHILE_BYTES = 128 * 2**10  # of a block; smaller ones would waste too much of their last page
WINDOW = 64  # takes: as much as was in use at once in this many or twice as many of the last ones is kept
HUGE_BYTES = 2 * 2**20  # of a huge page, which is had six times as fast as its small ones
HUGE_FROM = 2 * HUGE_BYTES  # of memory that may be of huge pages
_END_OF_STREAM_BYTES = 8  # that Arrow writes behind the rows
_CLASSES = 8  # sizes between a power of two and the next: a block is at most an eighth larger than it need be


class PagePool:
    """Blocks of whole pages; what was in use a while ago is kept for whoever asks next."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may give a block back in the middle of anything
        self._free: OrderedDict[int, list[mmap.mmap]] = OrderedDict()  # by size, the size that was used last at the end; no list is empty
        self.free_bytes = 0  # of blocks that nobody uses
        self.used_bytes = 0  # of the others
        self._takes = 0
        self._peaks = [0, 0]  # most bytes that were in use at once, in the window before this one and in this one

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Take memory; it's given back with the last reference to the array.

        Args:
            num_bytes: how much, at least.

        Returns:
            Whole pages, the first of which begins the array. What they hold is undefined.
        """
        size = _size_of(num_bytes)
        with self._lock:
            block = None
            if size in self._free:
                self._free.move_to_end(size)
                block = self._pop(size)
            self.used_bytes += size
            self._takes += 1
            if self._takes % WINDOW == 0:
                self._peaks = [self._peaks[1], 0]
            self._peaks[1] = max(self._peaks[1], self.used_bytes)
            self._trim()
        if block is None:
            block = _new_block(size, num_bytes)
        array = np.frombuffer(block, np.uint8, count=whole_pages(num_bytes))
        weakref.finalize(array, self._give_back, block).atexit = False
        return array

    def _give_back(self, block: mmap.mmap) -> None:
        with self._lock:
            self.used_bytes -= len(block)
            self.free_bytes += len(block)
            self._free.setdefault(len(block), []).append(block)
            self._free.move_to_end(len(block))
            self._trim()

    def _trim(self) -> None:
        """Give back to the system what wasn't in use for a while."""
        while self.free_bytes and self.used_bytes + self.free_bytes > max(self._peaks):
            if (size := next(iter(self._free), None)) is not None:  # the collector may have come between, with blocks of its own
                self._pop(size)

    def _pop(self, size: int) -> mmap.mmap:
        """Take a free block out."""
        block = self._free[size].pop()
        self.free_bytes -= size
        if not self._free[size]:
            del self._free[size]
        return block


PAGES = PagePool()
"""The process's, as an allocator is."""


class Front:
    """Memory that is taken piece by piece from its front.

    Args:
        memory: writable.
    """

    SLACK_BYTES = 64  # that a piece may take beyond its own: each begins at a multiple of it, so that numbers can be read in place

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.used = 0

    def take(self, num_bytes: int) -> memoryview | None:
        """Take a piece.

        Args:
            num_bytes: of it.

        Returns:
            It; None: there isn't so much left.
        """
        start, end = self.used, self.used + num_bytes
        if end > len(self._memory):
            return None
        self.used = end - end % -self.SLACK_BYTES
        return self._memory[start:end]


def _new_block(size: int, num_bytes: int) -> mmap.mmap:
    """Pages from the system; private ones, since those that could be shared cost it three times as much."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= HUGE_FROM:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            block.madvise(mmap.MADV_HUGEPAGE, 0, num_bytes // HUGE_BYTES * HUGE_BYTES)  # so that what isn't used takes none
    return block


def _size_of(num_bytes: int) -> int:
    """The size of the block that so many bytes get."""
    pages = max(whole_pages(num_bytes) // PAGE, 1)
    step = max(2 ** (pages.bit_length() - 1) // _CLASSES, 1)
    return -(-pages // step) * step * PAGE


def whole_pages(num_bytes: int) -> int:
    """Round bytes up to whole pages."""
    return -(-num_bytes // PAGE) * PAGE


def encoded_in_pages(rows: pa.RecordBatch, pool: PagePool) -> pa.Buffer:
    """Copy rows into one Arrow IPC message; a large one fills whole pages, the rest of the last one with zeros.

    Args:
        rows: of any schema.
        pool: gives the pages.

    Returns:
        The message, which owns its memory.
    """
    num_bytes = pa.ipc.get_record_batch_size(rows)
    if num_bytes < WORTHWHILE_BYTES:
        return rows.serialize()
    # Arrow writes the schema before the rows, and can't be told not to: it goes to the end of the pages before
    schema_bytes = rows.schema.serialize().size
    first = whole_pages(schema_bytes)
    end = first + num_bytes
    pages = pool.take(end + _END_OF_STREAM_BYTES)
    with pa.ipc.new_stream(pa.FixedSizeBufferWriter(pa.py_buffer(pages[first - schema_bytes :])), rows.schema) as writer:
        writer.write_batch(rows)
    pages[end:] = 0
    return pa.py_buffer(pages).slice(first)

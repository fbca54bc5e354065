"""Memory that a process lends to the replay actor of its node, so that large rows need not pass through the object store.

Owns the lent files, who uses which place in them, and how a value lies in a place. Must not know rows, calls or Ray.

The caller says with each call where its value lies, or where the answer may go; the actor keeps nothing but its mappings. A place belongs
to one call, and afterwards to whoever holds what was read from it. It is given back when that is over, and never when nobody can tell
whether the actor still uses it: such a place is lost until the lender closes, and calls without a place take the object store.
"""

from __future__ import annotations

import mmap
import os
import pickle
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.pages import Front
from weights.owned_folder import OwnedFolder
from weights.staging import reserve_file

SHARED_MEMORY = Path("/dev/shm")
PREFIX, SUFFIX = "rethinker-replay-", ".places"
WORTHWHILE_BYTES = 128 * 2**10  # Ray carries smaller values within the call
ROUND_BYTES = 2**20  # places are a multiple of it, so that slightly larger values don't want new ones
MOST_FILES = 64  # that the actor keeps mapped; one a lender, until it needs larger places


class LentMemoryError(ValueError):
    """A place that isn't what it says: no lent file, not this user's, or outside of its file."""


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a lent file, for one value."""

    path: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A value whose large parts lie in a place."""

    head: bytes  # the rest of it, pickled
    place: Place
    spans: tuple[tuple[int, int], ...]  # of each part: where in the place it begins, and its bytes


class Room:
    """What a place has room for: memory is taken from its front, and a value's letter then names what lies there already.

    Args:
        place: on loan.
        memory: of the place, writable.
    """

    def __init__(self, place: Place, memory: memoryview) -> None:
        self._place = place
        self._first = np.frombuffer(memory, np.uint8).ctypes.data if len(memory) else 0
        self._front = Front(memory)

    def take(self, num_bytes: int) -> memoryview | None:
        """Take memory, for a part of a value that isn't made yet; see Front.take."""
        return self._front.take(num_bytes)

    def put(self, value: Any) -> Letter | None:
        """Write a value; parts of it that lie in taken memory stay where they are.

        Args:
            value: whose pickling hands over large parts out of band, as Parcel's does.

        Returns:
            What ``get`` reads; None: it doesn't fit.
        """
        parts: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, protocol=5, buffer_callback=parts.append)
        spans = []
        for part in parts:
            view = np.frombuffer(part.raw(), np.uint8)
            start = view.ctypes.data - self._first
            if not 0 <= start <= self._front.used - view.nbytes:
                start = self._front.used
                target = self.take(view.nbytes)
                if target is None:
                    return None
                np.copyto(np.frombuffer(target, np.uint8), view)  # other threads go on meanwhile
            spans.append((start, view.nbytes))
        return Letter(head=head, place=self._place, spans=tuple(spans))


def get(letter: Letter, memory: memoryview) -> Any:
    """Read a value; it shares the place's memory.

    Args:
        letter: of Room.put.
        memory: of the letter's place.

    Returns:
        The value, read-only where it lies in the place.

    Raises:
        LentMemoryError: when its parts don't fit into the place.
    """
    for start, num_bytes in letter.spans:
        if not 0 <= start <= start + num_bytes <= len(memory):
            raise LentMemoryError(f"a part of {num_bytes} bytes from {start} on in a place of {len(memory)}")
    return pickle.loads(letter.head, buffers=[memory[start : start + num_bytes].toreadonly() for start, num_bytes in letter.spans])


class Loan:
    """A place on loan for one call. Who lets go of it without a word has lost it, since the actor may still use it."""

    def __init__(self, lender: Lender, file: _File, start: int) -> None:
        self._lender, self._file, self._start = lender, file, start
        self.place = Place(file.path, start, file.place_bytes)

    @property
    def memory(self) -> memoryview:
        """Of the place, to write to before the call."""
        return memoryview(self._file.memory[self._start : self._start + self._file.place_bytes])

    def give_back(self) -> None:
        """After the call was answered; once."""
        self._lender._take_back(self._file, self._start)

    def read(self, letter: Letter) -> Any:
        """Read the call's answer, once; the place is given back with the last reference to what this returns.

        Args:
            letter: that was answered, in this place.

        Returns:
            The value.
        """
        held = self._file.memory[self._start : self._start + self._file.place_bytes]
        weakref.finalize(held, self._lender._take_back, self._file, self._start).atexit = False
        return get(letter, memoryview(held))  # a slice of a memoryview keeps the array itself, a slice of the array would not


@dataclass(eq=False)
class _File:
    """Places of one size."""

    path: str
    memory: NDArray[np.uint8]
    place_bytes: int
    free: list[int]  # starts of places
    num_lent: int = 0


class Lender:
    """A caller's places in shared memory; none where the system has no shared memory.

    Args:
        num_places: how many calls may have one at the same time.
        root: of shared memory.
    """

    def __init__(self, num_places: int, *, root: Path = SHARED_MEMORY) -> None:
        self._num_places = num_places
        self._root = root
        self._lock = threading.RLock()  # the garbage collector may give a place back in the middle of anything
        self._folder: OwnedFolder | None = None
        self._current: _File | None = None
        self._num_files = 0

    def lend(self, num_bytes: int) -> Loan | None:
        """Find a place for a value.

        Args:
            num_bytes: that it takes, roughly.

        Returns:
            The loan; None when all places are on loan, shared memory has no room, or the value is too small to be worth one.
        """
        if num_bytes < WORTHWHILE_BYTES:
            return None
        with self._lock:
            if self._current is None or self._current.place_bytes < num_bytes:
                self._grow(num_bytes)
            file = self._current
            if file is None or file.place_bytes < num_bytes or not file.free:
                return None
            file.num_lent += 1
            return Loan(self, file, file.free.pop())

    def close(self) -> None:
        """Remove the files and lend nothing more; what was read from them stays whole."""
        with self._lock:
            self._num_places, self._current = 0, None
            if self._folder is not None:
                self._folder.close()

    def _grow(self, num_bytes: int) -> None:
        """Make larger places, if there is room; the file of the former ones goes with the last of them that is on loan."""
        place_bytes = -(-(num_bytes + num_bytes // 8) // ROUND_BYTES) * ROUND_BYTES
        total = place_bytes * self._num_places
        if not total or not self._root.is_dir():
            return
        try:
            if self._folder is None:
                self._folder = OwnedFolder(self._root, PREFIX)
                weakref.finalize(self, self._folder.close)
            path = reserve_file(self._folder.path / f"{self._num_files}{SUFFIX}", total)
        except OSError:  # a container's shared memory is often small; calls without a place take the object store
            return
        self._num_files += 1
        former, memory = self._current, np.asarray(np.memmap(path, dtype=np.uint8, mode="r+"))
        self._current = _File(str(path), memory, place_bytes, list(range(0, total, place_bytes)))
        if former is not None:
            self._forget_if_unused(former)

    def _take_back(self, file: _File, start: int) -> None:
        with self._lock:
            file.free.append(start)
            file.num_lent -= 1
            if file is not self._current:
                self._forget_if_unused(file)

    def _forget_if_unused(self, file: _File) -> None:
        if file.num_lent == 0:
            Path(file.path).unlink(missing_ok=True)


class Borrower:
    """The actor's view of lent places."""

    def __init__(self) -> None:
        self._mapped: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()

    def memory(self, place: Place) -> memoryview:
        """Look at a place.

        Args:
            place: of a lender on this node.

        Returns:
            Its memory, writable; it stays mapped while anybody holds this.

        Raises:
            LentMemoryError: when it is no lent file of this user's, or the place isn't within the file.
        """
        with self._lock:
            mapped = self._mapped.get(place.path)
            if mapped is None:
                mapped = self._mapped[place.path] = self._map(Path(place.path))
            self._mapped.move_to_end(place.path)
            while len(self._mapped) > MOST_FILES:
                self._mapped.popitem(last=False)
        if place.start < 0 or place.nbytes < 0 or place.start + place.nbytes > len(mapped):
            raise LentMemoryError(f"{place} is outside of its file's {len(mapped)} bytes")
        return memoryview(mapped)[place.start : place.start + place.nbytes]

    def _map(self, path: Path) -> mmap.mmap:
        for former in [former for former in self._mapped if not os.path.exists(former)]:  # their lenders have ended, or have larger places
            del self._mapped[former]
        if not path.parent.name.startswith(PREFIX) or path.suffix != SUFFIX:
            raise LentMemoryError(f"{path} is no file of lent memory")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            raise LentMemoryError(f"{path} can't be used: {error.strerror}; is its lender on another node?") from error
        try:
            if os.fstat(descriptor).st_uid != os.getuid():
                raise LentMemoryError(f"{path} belongs to another user")
            return mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

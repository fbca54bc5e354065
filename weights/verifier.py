"""The receiver's check of a version's files: every byte is read, also while the files are still being written.

Owns the receiver's mappings of the files, which last from version to version. Must not know vLLM, Ray or who writes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from weights.buckets import CHUNK_BYTES, as_bytes, verify_bucket
from weights.manifest import WeightManifest, WeightUpdateError
from weights.progress import ReadProgress

_POLL_S = 0.0005  # between two looks at a writer who has nothing new


class FileVerifier:
    """Checks files against their manifest; one caller at a time."""

    def __init__(self) -> None:
        self._mapped: dict[str, _Mapped] = {}
        self._ahead: _ReadAhead | None = None

    def expect(self, paths: Sequence[str], version: int, *, timeout_s: float) -> None:
        """Begin to read files that are about to be written, in a thread of its own; returns at once.

        Args:
            paths: of the files, as they will be given to verify.
            version: that they are about to be.
            timeout_s: how long the thread waits for the writer.

        Raises:
            WeightUpdateError: when the files are not there.
        """
        self.stop()
        try:
            progress = ReadProgress(paths)
            memory = [self._map(path) for path in paths]
        except (OSError, ValueError) as error:
            raise WeightUpdateError(f"version {version} can't be read ahead: {error}") from error
        self._ahead = _ReadAhead(list(paths), version, memory, progress, timeout_s)
        self._ahead.start()

    def verify(self, paths: Sequence[str], manifest: WeightManifest) -> str:
        """Compare the files with their manifest; what has been read ahead and was right is not read again.

        Args:
            paths: of the buckets, written to the end.
            manifest: that they are to be.

        Returns:
            The whole model's checksum, of the bytes that this process has read.

        Raises:
            WeightUpdateError: when a file is missing or wrong.
        """
        where = f"update to version {manifest.version}"
        if len(paths) != len(manifest.buckets):
            raise WeightUpdateError(f"{where}: {len(manifest.buckets)} buckets were sent, {len(paths)} are staged")
        digests = self._read_ahead(paths, manifest.version)
        for bucket, path, digest in zip(manifest.buckets, paths, digests, strict=True):
            try:
                payload = self._map(path)
            except (OSError, ValueError) as error:  # ValueError: the file is empty
                raise WeightUpdateError(f"{where}: cannot read {path}: {error}") from error
            verify_bucket(bucket, payload, where=f"{where}, {path}", read=digest if digest == bucket.checksum else None)
        self._mapped = {path: self._mapped[path] for path in paths}
        return manifest.checksum

    def stop(self) -> None:
        """End the thread that reads ahead; what it has read counts for nothing."""
        if self._ahead is not None:
            self._ahead.finish()
            self._ahead = None

    def _read_ahead(self, paths: Sequence[str], version: int) -> list[str | None]:
        """The checksum of each file that has been read to its end; None of the others."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return [None] * len(paths)
        digests = ahead.finish()
        return digests if (ahead.paths, ahead.version) == (list(paths), version) else [None] * len(paths)

    def _map(self, path: str) -> NDArray[np.uint8]:
        """A file's memory, mapped anew only when it is another file: reading a new mapping costs a page fault every few pages."""
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino, status.st_size)
        held = self._mapped.get(path)
        if held is None or held.identity != identity:
            held = self._mapped[path] = _Mapped(identity, np.asarray(np.memmap(path, dtype=np.uint8, mode="r")))
        return held.memory


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A file that stays mapped."""

    identity: tuple[int, int, int]  # device, inode, bytes
    memory: NDArray[np.uint8]


class _ReadAhead(threading.Thread):
    """Follows a writer through all files of a version. Hashing lets other threads run, so the engine goes on meanwhile."""

    def __init__(self, paths: list[str], version: int, memory: list[NDArray[np.uint8]], progress: ReadProgress, timeout_s: float) -> None:
        super().__init__(name=f"reads version {version} ahead", daemon=True)
        self.paths, self.version = paths, version
        self._memory, self._progress = memory, progress
        self._until = time.monotonic() + timeout_s
        self._written = threading.Event()  # to the end: what isn't available now never will be
        self._hashes = [xxhash.xxh3_64() for _ in paths]
        self._positions = [0] * len(paths)

    def run(self) -> None:
        """Read until everything has been read, the writer is known to have ended, or the time is over."""
        while time.monotonic() < self._until:
            last = self._written.is_set()
            moved = [self._follow(index) for index in range(len(self.paths))]
            if last or all(position == memory.nbytes for position, memory in zip(self._positions, self._memory, strict=True)):
                return
            if not any(moved):
                self._written.wait(_POLL_S)

    def finish(self) -> list[str | None]:
        """Read what is there and end.

        Returns:
            The checksum of each file that has been read to its end; None of the others.
        """
        self._written.set()
        self.join()
        ends = zip(self._hashes, self._positions, self._memory, strict=True)
        return [digest.hexdigest() if position == memory.nbytes else None for digest, position, memory in ends]

    def _follow(self, index: int) -> bool:
        """Read what is new of a file; whether there was anything."""
        begin = self._positions[index]
        end = min(self._progress.available(index, self.version), self._memory[index].nbytes)
        for start in range(begin, end, CHUNK_BYTES):
            if time.monotonic() >= self._until:
                return False
            self._hashes[index].update(as_bytes(self._memory[index][start : min(start + CHUNK_BYTES, end)]))
            self._positions[index] = min(start + CHUNK_BYTES, end)
        return end > begin

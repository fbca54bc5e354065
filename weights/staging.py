"""Files in shared memory, where an engine's process reads weights without a copy.

Owns the files of one process. Must not know vLLM, DeepSpeed, Ray or what is in the files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weights.manifest import WeightManifest, WeightUpdateError
from weights.owned_folder import OwnedFolder

_PREFIX = "rethinker-weights-"


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedUpdate:
    """A whole version on this node, not verified yet."""

    paths: tuple[str, ...]  # safetensors files, one per bucket of the manifest, in its order
    manifest: WeightManifest


class StagingArea:
    """A folder in shared memory for the weights of one process, readable by its owner only.

    What a killed process leaves is removed by the next one that opens a staging area on the node (see OwnedFolder).

    Args:
        root: where to put the folder; None: /dev/shm when it can be written to, else the system's temporary folder.
    """

    def __init__(self, root: str | None = None) -> None:
        self._root = Path(root) if root is not None else shared_memory_root()
        self._owned = OwnedFolder(self._root, _PREFIX)

    @property
    def folder(self) -> Path:
        """The folder of this process."""
        return self._owned.path

    def allocate(self, name: str, sizes: Sequence[int]) -> tuple[tuple[str, ...], list[NDArray[np.uint8]]]:
        """Make files of given sizes that only their owner can read, with all of their memory reserved.

        Args:
            name: of the folder that they are in.
            sizes: bytes of each, at least one.

        Returns:
            Path and writable memory of each.

        Raises:
            WeightUpdateError: when there is no room; nothing is left behind.
        """
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        try:
            paths = [reserve_file(folder / f"{index:05d}.safetensors", size) for index, size in enumerate(sizes)]
            return tuple(map(str, paths)), [np.asarray(np.memmap(path, dtype=np.uint8, mode="r+")) for path in paths]
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise WeightUpdateError(f"cannot stage {sum(sizes)} bytes of weights in {self._root}: {error}") from error

    def free(self, paths: Sequence[str]) -> None:
        """Remove files; those that are gone already are no error. Memory that a process has mapped stays until it lets go.

        Args:
            paths: as allocate returned them.
        """
        for folder in {Path(path).parent for path in paths}:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder; safe to call twice."""
        self._owned.close()

    def __enter__(self) -> StagingArea:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shared_memory_root(room_bytes: int = 0) -> Path:
    """Where files are memory that other processes can map.

    Args:
        room_bytes: what will be put there; containers often have very little of it.

    Returns:
        /dev/shm when this process can write to it and it has the room, else the system's temporary folder.
    """
    shared = Path("/dev/shm")
    usable = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > room_bytes
    return shared if usable else Path(tempfile.gettempdir())


def reserve_file(path: Path, size: int) -> Path:
    """Make a file with its memory: writing to a mapping that has none would end the process instead of raising an error.

    Args:
        path: of the new file, which only its owner can read.
        size: bytes.

    Returns:
        The path.

    Raises:
        OSError: when there is no room.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)
    return path

"""The receiving end before the engine is touched: verified payloads in shared memory, where the engine process reads them.

Owns the staging folder of one rollout actor and its cleaning. Must not know vLLM, DeepSpeed or Ray.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from weights.buckets import Payload, as_bytes, verify_bucket
from weights.manifest import WeightManifest, WeightUpdateError

_PREFIX = "rethinker-weights-"
_LOCK = "owner.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedUpdate:
    """A whole, verified update on this node."""

    paths: tuple[str, ...]  # safetensors files, one per bucket of the manifest, in its order
    manifest: WeightManifest


class StagingArea:
    """A folder in shared memory for the updates of one process, readable by its owner only.

    The folder is locked for as long as the process lives; folders whose process has died are removed by the next
    process that opens a staging area on the node, so a crash leaves nothing behind for longer than that.

    Args:
        root: where to put the folder; None: /dev/shm when it can be written to, else the system's temporary folder.
    """

    def __init__(self, root: str | None = None) -> None:
        self._root = Path(root) if root is not None else shared_memory_root()
        remove_abandoned(self._root)
        self._folder, self._lock = _make_folder(self._root)

    @property
    def folder(self) -> Path:
        """The folder of this process."""
        return self._folder

    def stage(self, manifest: WeightManifest, payloads: Sequence[Payload]) -> StagedUpdate:
        """Verify an update bucket by bucket and write it; nothing is left behind when a bucket is wrong.

        Args:
            manifest: what was sent.
            payloads: what arrived, in the manifest's order.

        Returns:
            Where the engine process finds it.

        Raises:
            WeightUpdateError: when a bucket is missing or wrong, or the folder has no room.
        """
        if len(payloads) != len(manifest.buckets):
            sent, arrived = len(manifest.buckets), len(payloads)
            raise WeightUpdateError(f"update to version {manifest.version}: {sent} buckets were sent, {arrived} arrived")
        target = Path(tempfile.mkdtemp(prefix=f"v{manifest.version}-", dir=self._folder))
        try:
            paths = []
            for index, (bucket, payload) in enumerate(zip(manifest.buckets, payloads, strict=True)):
                verify_bucket(bucket, payload, where=f"update to version {manifest.version}, bucket {index}")
                paths.append(str(_write(target / f"{index:05d}.safetensors", payload)))
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            what = f"{manifest.nbytes} bytes of version {manifest.version}"
            raise WeightUpdateError(f"cannot stage {what} in {self._root}: {error}") from error
        except WeightUpdateError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return StagedUpdate(paths=tuple(paths), manifest=manifest)

    def discard(self, update: StagedUpdate) -> None:
        """Remove the files of an update; those that are gone already are no error.

        Args:
            update: as stage returned it.
        """
        for folder in {Path(path).parent for path in update.paths}:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder; safe to call twice."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> StagingArea:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shared_memory_root() -> Path:
    """/dev/shm when this process can write to it, else the system's temporary folder."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def remove_abandoned(root: Path) -> list[Path]:
    """Remove staging folders of this user whose process no longer lives.

    Args:
        root: the folder of the folders.

    Returns:
        What was removed.
    """
    removed = []
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            _lock(folder / _LOCK, create=False).close()  # nobody holds it: its process has died
        except OSError:
            continue  # held by a living process, just being made, or just removed by another one
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _make_folder(root: Path) -> tuple[Path, IO[bytes]]:
    """A new folder of mode 0700 with its lock held. Another process may find it in the instant before and take it for abandoned."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        try:
            lock = _lock(folder / _LOCK)
        except OSError:
            if not root.is_dir() or not os.access(root, os.W_OK):
                raise
            continue
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()


def _lock(path: Path, *, create: bool = True) -> IO[bytes]:
    """Take the exclusive lock that dies with the process. Raises OSError when another process holds it."""
    file = path.open("wb" if create else "rb+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _write(path: Path, payload: Payload) -> Path:
    """Write one file that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        data = as_bytes(payload)
        while data:
            data = data[file.write(data) :]
    return path

"""A private folder that does not outlive its process for long, however the process ends.

Owns the lock that tells a living owner from a dead one, and the cleaning. Must not know what the folder is for.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

_LOCK = "owner.lock"


class OwnedFolder:
    """A folder of mode 0700 that is locked for as long as the process lives.

    Folders of the same prefix whose process has died are removed by the next process that makes one beside them, so a
    crash leaves nothing behind for longer than that.

    Args:
        root: the folder of the folders.
        prefix: how the names of these folders begin.
    """

    def __init__(self, root: Path, prefix: str) -> None:
        remove_abandoned(root, prefix)
        self.path, self._lock = _make_folder(root, prefix)

    def close(self) -> None:
        """Remove the folder; safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_abandoned(root: Path, prefix: str) -> list[Path]:
    """Remove folders of this user whose process no longer lives.

    Args:
        root: the folder of the folders.
        prefix: how their names begin.

    Returns:
        What was removed.
    """
    removed = []
    for folder in root.glob(f"{prefix}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            _lock(folder / _LOCK, create=False).close()  # nobody holds it: its process has died
        except OSError:
            continue  # held by a living process, just being made, or just removed by another one
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _make_folder(root: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    """A new folder with its lock held. Another process may find it in the instant before and take it for abandoned."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
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

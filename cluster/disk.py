"""Small things about disks."""

from __future__ import annotations

import os
from pathlib import Path


def sync_tree(folder: Path) -> None:
    """Ask the disk to hold a folder with all that is in it, before going on.

    Args:
        folder: of files that are written.

    Raises:
        OSError: when it doesn't.
    """
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders that name them
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """The same for one file, or for the names in one folder.

    Args:
        path: of it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

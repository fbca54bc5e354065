"""How far the files of a version have been written, so that a receiver reads each part while it is still in the machine's caches.

Owns a small file beside the files that writer and readers map. Must not know what is in them, or who reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_NAME = "progress"
_ROW = np.dtype([("version", np.int64), ("nbytes", np.int64)])


class WriteProgress:
    """The writer's end.

    What a reader makes of it is a saving of time and never of a check: one that reads a part too early computes another checksum than
    the manifest's, and reads the file again.

    Args:
        paths: of the files, all in one folder.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        file = _beside(paths)
        np.zeros(len(paths), dtype=_ROW).tofile(file)
        rows = np.memmap(file, dtype=_ROW, mode="r+")
        self._versions, self._nbytes = rows["version"], rows["nbytes"]

    def begin(self, version: int) -> None:
        """Nothing of this version is there yet.

        Args:
            version: that is about to be written.
        """
        self._nbytes[:] = 0
        self._versions[:] = version

    def reached(self, index: int, nbytes: int) -> None:
        """The file holds the version up to a byte.

        Args:
            index: of the file.
            nbytes: from its front, never fewer than before.
        """
        self._nbytes[index] = nbytes


class ReadProgress:
    """A reader's end.

    Args:
        paths: of the files.

    Raises:
        OSError: when the writer keeps none, or for another number of files.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        rows = np.memmap(_beside(paths), dtype=_ROW, mode="r", shape=(len(paths),))
        self._versions, self._nbytes = rows["version"], rows["nbytes"]

    def available(self, index: int, version: int) -> int:
        """How much of a file may be read.

        Args:
            index: of the file.
            version: that is wanted.

        Returns:
            Bytes from the front; 0 while the version is another one.
        """
        return int(self._nbytes[index]) if int(self._versions[index]) == version else 0


def _beside(paths: Sequence[str]) -> Path:
    return Path(paths[0]).parent / _NAME

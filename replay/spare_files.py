"""Files of a journal that nothing refers to any more, kept to be written over.

Owns these files. Must not know what was in them, records, nor Ray. A file that is written over needs no new blocks of the disk, and none of
the former one have to be given up: that is twice as fast as a new file beside the deletion of an old one, and more where deletion tells the
device (docs/benchmarks.md). What was in it stays until it is written over, so whoever reads must know its own records from former ones.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from replay.journal import SPARE, numbered_files, numbered_path

logger = logging.getLogger(__name__)


class SpareFiles:
    """The spare files of a journal; any thread may give and take.

    Args:
        folder: of the journal; those that a former process left are taken over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes = {path: path.stat().st_size for path in numbered_files(folder, SPARE).values()}
        self._most_bytes = sum(self._sizes.values())
        self._lock = threading.Lock()

    def add(self, path: Path, number: int) -> None:
        """Keep a file, under another name.

        Args:
            path: of it. A base that doesn't refer to it is on the disk.
            number: its own among the files of rows.

        Raises:
            OSError: when it can't be renamed.
        """
        spare = numbered_path(self._folder, SPARE, number)
        path.rename(spare)
        with self._lock:
            self._sizes[spare] = spare.stat().st_size

    def take(self, path: Path) -> int | None:
        """Turn the largest one into another file.

        Args:
            path: its new name, which must not exist.

        Returns:
            Its bytes; None: there is none.

        Raises:
            OSError: when it can't be renamed.
        """
        while True:
            with self._lock:
                if not self._sizes:
                    return None
                spare = max(self._sizes, key=lambda file: (self._sizes[file], file))
                size = self._sizes.pop(spare)
            try:
                spare.rename(path)
            except FileNotFoundError:  # somebody has tidied up; nothing is lost
                continue
            return size

    def allow(self, num_bytes: int) -> None:
        """Bound them; ``trim`` sees to it.

        Args:
            num_bytes: that all may have together.
        """
        self._most_bytes = num_bytes

    def trim(self) -> None:
        """Delete the smallest ones until the others are within the bound."""
        while True:
            with self._lock:
                if sum(self._sizes.values()) <= self._most_bytes:
                    return
                spare = min(self._sizes, key=lambda file: (self._sizes[file], file))
                del self._sizes[spare]
            try:
                spare.unlink(missing_ok=True)
            except OSError as error:  # it costs room and nothing else; the next process takes it over
                logger.warning("%s can't be deleted: %s", spare, error)

"""Every trajectory of a run on disk, for people and their tools; training never reads it.

Owns the files of a run folder's ``trajectories/``. Must not know the buffer or Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from algorithms.schema import TRAJECTORY_SCHEMA

logger = logging.getLogger(__name__)

KEPT_STEPS = 64  # trajectories of so many steps wait in memory for room on the disk


class TrajectoryArchive:
    """Writes the trajectories that each step consumed into one Arrow IPC file.

    ``pyarrow.ipc.open_file(path).read_all()`` opens a file; its schema is algorithms.schema.TRAJECTORY_SCHEMA.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._kept: dict[int, Sequence[pa.RecordBatch]] = {}  # what there was no room for

    def write_or_keep(self, policy_version: int, consumed: Sequence[pa.RecordBatch]) -> None:
        """The same with a full disk: what it has no room for is written with a later step's.

        Args:
            policy_version: as write.
            consumed: as write.
        """
        self._kept[policy_version] = consumed
        while self._kept:
            version = next(iter(self._kept))
            try:
                self.write(version, self._kept[version])
            except OSError as error:
                logger.warning("the trajectories of %d steps wait for room in %s: %s", len(self._kept), self._folder, error)
                if len(self._kept) > KEPT_STEPS:
                    logger.error("the trajectories of step %d are not in the archive", version + 1)
                    del self._kept[version]
                return
            del self._kept[version]

    def write(self, policy_version: int, consumed: Sequence[pa.RecordBatch]) -> Path:
        """Write the groups of a step.

        Args:
            policy_version: of the learner that takes the step; names the file. A resumed run replaces the files of the steps that it does
                again.
            consumed: of TRAJECTORY_SCHEMA.

        Returns:
            The file.

        Raises:
            OSError: when it can't be written.
        """
        path = self._folder / f"step-{policy_version + 1:06d}.arrow"
        temporary = path.with_name(f".{path.name}")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, TRAJECTORY_SCHEMA) as writer:
            writer.write_batch(pa.concat_batches(consumed))
        os.replace(temporary, path)
        return path

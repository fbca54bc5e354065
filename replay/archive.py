"""Every trajectory of a run on disk, for people and their tools; training never reads it.

Owns the files of a run folder's ``trajectories/``. Must not know the buffer or Ray.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from algorithms.schema import TRAJECTORY_SCHEMA


class TrajectoryArchive:
    """Writes the trajectories that arrived before each draw into one Arrow IPC file.

    ``pyarrow.ipc.open_file(path).read_all()`` opens a file; its schema is algorithms.schema.TRAJECTORY_SCHEMA.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._arrived: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep a batch until the next file.

        Args:
            batch: of TRAJECTORY_SCHEMA.
        """
        self._arrived.append(batch)

    def write(self, policy_version: int) -> Path | None:
        """Write what has arrived.

        Args:
            policy_version: of the learner that draws next; names the file. A resumed run replaces the files of the
                steps that it does again.

        Returns:
            The file; None when nothing arrived.
        """
        arrived, self._arrived = self._arrived, []
        if not arrived:
            return None
        path = self._folder / f"step-{policy_version + 1:06d}.arrow"
        temporary = path.with_name(f".{path.name}")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, TRAJECTORY_SCHEMA) as writer:
            for batch in arrived:
                writer.write_batch(batch)
        os.replace(temporary, path)
        return path

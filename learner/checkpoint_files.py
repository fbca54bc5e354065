"""DeepSpeed's checkpoint files, written beside training.

Owns the way of a rank's state from memory to the disk. Must not know what the state is.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any


class BackgroundFiles:
    """Takes a rank's files as they are now, and writes them in a thread; one checkpoint at a time."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, memoryview]] = []
        self._folders: list[Path] = []
        self._writing: threading.Thread | None = None
        self._failure: OSError | None = None

    def add_folder(self, path: str | Path) -> None:
        """Have a folder made."""
        self._folders.append(Path(path))

    def add(self, state: Any, path: str | Path) -> None:
        """Copy a state into memory, as torch.save writes it.

        Args:
            state: what torch can save; may change afterwards.
            path: of its file.
        """
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._files.append((Path(path), buffer.getbuffer()))

    def begin(self) -> None:
        """Start to write what was added.

        Raises:
            RuntimeError: when the last checkpoint is still being written.
        """
        if self._writing is not None:
            raise RuntimeError("the last checkpoint is still being written: finish it first")
        self._failure = None
        self._writing = threading.Thread(target=self._write, name="checkpoint-files", daemon=True)
        self._writing.start()

    def finish(self) -> str | None:
        """Wait until everything is on the disk.

        Returns:
            None; or why it isn't.
        """
        if self._writing is None:
            return "no checkpoint is being written: this process has started after it was begun"
        self._writing.join()
        self._writing, self._files, self._folders = None, [], []
        return None if self._failure is None else str(self._failure)

    def _write(self) -> None:
        try:
            for folder in self._folders:
                folder.mkdir(parents=True, exist_ok=True)
            while self._files:
                path, content = self._files.pop(0)  # its memory is free once it is written
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            self._failure = error

"""A small disk of one's own, which can be filled."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SIZE_MIB = 400


class SmallDisk:
    """A memory file system of a few hundred megabytes, where this user may mount one; else a plain folder that can't be filled.

    Args:
        folder: where it is mounted, and beside which its content is kept from one series to the next.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self._kept = folder / "kept"
        self.path.mkdir(parents=True, exist_ok=True)
        self.limited = _mounted(self.path)
        if self._kept.exists():
            shutil.copytree(self._kept, self.path, dirs_exist_ok=True)

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("wb", buffering=0) as file:
            block = bytes(2**20)
            while block:
                try:
                    file.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink()

    def close(self) -> None:
        """Keep the content, and unmount."""
        self._filler.unlink(missing_ok=True)
        if self.limited:
            shutil.rmtree(self._kept, ignore_errors=True)
            shutil.copytree(self.path, self._kept)
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)


def can_mount() -> bool:
    """Whether this user may mount a small disk: root, and not in every container."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = _mounted(Path(folder))
        if mounted:
            subprocess.run(["umount", folder], check=True)
    return mounted


def _mounted(path: Path) -> bool:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "chaos", str(path)]
    return os.getuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0

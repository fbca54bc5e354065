"""The run folder: what lies where, and how a checkpoint becomes visible whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.disk import sync

UNFINISHED = (".writing-", ".removing-", ".replaced-")
"""What a checkpoint's folder is called while it isn't one: before it is whole, and once it is being removed."""


class RunFolderError(ValueError):
    """The run folder can't be used as asked; the message names it and says what to do."""


class RunUnreachable(ValueError):
    """A command can't speak to a run; the message says why and what to do."""


class RunFolder:
    """Paths of one run.

    Args:
        path: of the folder; made by open().
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.tensorboard = self.path / "tensorboard"
        self.trajectories = self.path / "trajectories"
        self.journal = self.path / "journal"  # of replay
        self.checkpoints = self.path / "checkpoint"
        self.model = self.path / "model"
        self.rethinking = self.path / "rethinking"  # pictures of rethinking.md
        self.log = self.path / "log.txt"
        self.state = self.path / "state.json"
        self.contact = self.path / "cluster.json"  # where commands find a run that is running

    def refuse(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to touch another run's folder; changes nothing.

        Args:
            resume: the caller will go on in a folder that holds a run.
            overwrite: the caller will remove what a former run left.

        Raises:
            RunFolderError: when the folder holds a run and neither is set, or resume finds nothing.
        """
        holds_a_run = self.config.exists()
        if resume and not holds_a_run:
            raise RunFolderError(f"run.resume=true, but {self.path} holds no run; start it with run.resume=false")
        if holds_a_run and not resume and not overwrite:
            raise RunFolderError(
                f"{self.path} holds a run; set run.resume=true to go on, run.overwrite=true to replace it, or another run.name"
            )

    def open(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder.

        Args:
            resume: go on in a folder that holds a run.
            overwrite: remove what a former run left.

        Raises:
            RunFolderError: as refuse does.
        """
        self.refuse(resume=resume, overwrite=overwrite)
        if overwrite and self.config.exists():
            shutil.rmtree(self.path)
        for folder in (self.path, self.trajectories, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        for replaced in self.checkpoints.glob(".replaced-*"):  # the process ended between two renames
            original = self.checkpoints / replaced.name.replace(".replaced-", "step-")
            if not original.exists():
                os.replace(replaced, original)
        for leftover in (path for kind in UNFINISHED for path in self.checkpoints.glob(f"{kind}*")):
            shutil.rmtree(leftover)

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step.

        Returns:
            Its folder; None when there is none.
        """
        found = sorted(self.checkpoints.glob("step-*"))
        return found[-1] if found else None

    def begin_checkpoint(self, step: int) -> Path:
        """Make a folder that no reader takes for a checkpoint yet.

        Args:
            step: steps done.

        Returns:
            The folder to write into.
        """
        folder = self.checkpoints / f".writing-{step:06d}"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def commit_checkpoint(self, folder: Path, *, keep_last: int, keep_best: int = 0) -> Path:
        """Make a written checkpoint visible in one rename, then remove those that aren't kept.

        Args:
            folder: from begin_checkpoint; the disk holds it.
            keep_last: checkpoints to keep, at least 1.
            keep_best: of those whose accuracy was measured, how many of the best to keep besides.

        Returns:
            Its final folder.
        """
        final = self.checkpoints / folder.name.replace(".writing-", "step-")
        if final.exists():
            os.replace(final, self.checkpoints / folder.name.replace(".writing-", ".replaced-"))
        os.replace(folder, final)
        sync(self.checkpoints)
        accuracies = {path: _accuracy(path) for path in sorted(self.checkpoints.glob("step-*"))}
        kept = kept_checkpoints(accuracies, keep_last=keep_last, keep_best=keep_best)
        for old in accuracies.keys() - kept:
            os.replace(old, old.with_name(old.name.replace("step-", ".removing-")))  # in one go, so that no half of it looks like one
        for leftover in (path for kind in UNFINISHED[1:] for path in self.checkpoints.glob(f"{kind}*")):
            shutil.rmtree(leftover)
        return final

    def cut_metrics(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run does again.

        Args:
            step: steps that the checkpoint has done.
        """
        if not self.metrics.exists():
            return
        lines = [line for line in self.metrics.read_text().splitlines() if line and json.loads(line)["step"] <= step]
        write_atomically(self.metrics, "".join(line + "\n" for line in lines))


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old or the new text, never a part.

    Args:
        path: to write.
        text: whole content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON for people and programs.

    Args:
        path: to replace.
        value: JSON-able.
    """
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def kept_checkpoints(accuracies: Mapping[Path, float | None], *, keep_last: int, keep_best: int) -> set[Path]:
    """Choose the checkpoints that stay.

    Args:
        accuracies: of each, oldest first; None: not measured.
        keep_last: the newest so many.
        keep_best: and so many of those with the highest accuracy, of equals the newer ones.

    Returns:
        Those to keep.
    """
    folders = list(accuracies)
    measured = [(accuracy, number, folder) for number, (folder, accuracy) in enumerate(accuracies.items()) if accuracy is not None]
    return {*folders[-keep_last:], *(folder for *_, folder in sorted(measured, reverse=True)[:keep_best])}


def _accuracy(checkpoint: Path) -> float | None:
    """What a checkpoint's own file says; None where it says nothing."""
    try:
        return json.loads((checkpoint / "controller.json").read_text()).get("accuracy")
    except (OSError, json.JSONDecodeError):
        return None

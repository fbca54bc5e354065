"""One atomic checkpoint of the whole run, written beside training: learner, replay, ledger, step and version together.

Owns what belongs to a checkpoint, and that it becomes visible whole or not at all. Must not know how a role writes its part.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from cluster.controller import Controller
from cluster.disk import sync_tree
from cluster.run_folder import RunFolder, write_json
from cluster.waiting import answer_within
from conf.schema import CheckpointConfig
from learner.group import LearnerGroup, LearnerGroupError

logger = logging.getLogger(__name__)

STATE_FILE = "controller.json"
LAST_TIMEOUT_S = 600.0  # for room on the disk, when there is no later step that could try again
RETRY_S = 2.0


class CheckpointWriter:
    """Takes checkpoints between two steps and writes them while the next ones are made; one at a time.

    A disk that is full pauses it, and nothing else: what was written stays, and the next step tries again when there is room.

    Args:
        folder: of the run.
        controller: whose roles are written.
        group: the learner's.
        settings: how many are kept.
        flush: writes the metrics that wait for room, or says why it can't: a run that goes on from a checkpoint has those before it.
        say: told in a sentence when checkpoints are paused, and when they go on.
    """

    def __init__(
        self,
        folder: RunFolder,
        controller: Controller,
        group: LearnerGroup,
        settings: CheckpointConfig,
        *,
        flush: Callable[[], str | None],
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._controller = controller
        self._group = group
        self._settings = settings
        self._flush = flush
        self._say = say
        self._writing: asyncio.Task[None] | None = None
        self.paused: str | None = None  # why the last one could not be written

    async def take(self, evaluations: dict[str, Any], *, accuracy: float | None) -> None:
        """Copy the run's state as it is between two steps, and begin to write it; waits until the one before is written.

        Args:
            evaluations: results so far.
            accuracy: on held-out questions with these weights; None: not measured.

        Raises:
            LearnerGroupError, RestartBudgetExceeded: when the learner is lost for good.
        """
        await self.settle()
        if self.paused is not None and not self._has_room():
            return
        controller = self._controller
        try:
            if (reason := self._flush()) is not None:
                raise OSError(reason)
            writing = self._folder.begin_checkpoint(controller.step)
        except OSError as error:
            self._pause(error)
            return
        # The ledger before replay: a group that arrives in between is owed and stored, and replay takes it once only.
        state = {**controller.state(), "evaluations": dict(evaluations), "accuracy": accuracy}
        deadline_s = controller.config.learner.timeout_s
        await answer_within(controller.replay.begin_snapshot.remote(), deadline_s, "the replay actor to copy its content")
        await controller.learner.survive(lambda: self._group.begin_checkpoint(str(writing / "learner")))
        self._writing = asyncio.create_task(self._finish(writing, state))

    async def take_last(self, evaluations: dict[str, Any], *, accuracy: float | None) -> None:
        """Take a checkpoint and wait until it is written; for a full disk, too.

        Args:
            evaluations: as take.
            accuracy: as take.

        Raises:
            OSError: when there was no room within LAST_TIMEOUT_S.
        """
        deadline = time.monotonic() + LAST_TIMEOUT_S
        while True:
            await self.take(evaluations, accuracy=accuracy)
            await self.settle()
            newest = self._folder.newest_checkpoint()
            if newest is not None and newest.name == f"step-{self._controller.step:06d}":
                return
            if time.monotonic() > deadline:
                raise OSError(f"the last checkpoint could not be written within {LAST_TIMEOUT_S:g} s: {self.paused}")
            await asyncio.sleep(RETRY_S)

    async def settle(self) -> None:
        """Wait until nothing is being written any more."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None

    def abandon(self) -> None:
        """Let go of what is being written, because the run ends."""
        if self._writing is not None:
            self._writing.cancel()

    async def _finish(self, writing: Path, state: dict[str, Any]) -> None:
        """Everything to the disk, then one rename."""
        step, deadline_s = state["step"], self._controller.config.learner.timeout_s
        try:
            snapshot = self._controller.replay.write_snapshot.remote(str(writing / "replay"))
            await asyncio.gather(
                answer_within(snapshot, deadline_s, "the replay actor to write its snapshot"), self._group.finish_checkpoint()
            )
            write_json(writing / STATE_FILE, state)
            await asyncio.to_thread(sync_tree, writing)
            keep = {"keep_last": self._settings.keep_last, "keep_best": self._settings.keep_best}
            final = await asyncio.to_thread(self._folder.commit_checkpoint, writing, **keep)
        except (LearnerGroupError, TimeoutError, RuntimeError) as error:  # a role died meanwhile, and its copy with it
            await self._give_up(writing, step, error)
        except OSError as error:
            self._pause(error, writing)
        except RayError as error:
            await self._give_up(writing, step, error)
        else:
            self._controller.learner.covered(final, steps=step)
            if self.paused is not None:
                self.paused = None
                self._say(f"checkpoints go on: {final} is written")

    async def _give_up(self, writing: Path, step: int, error: Exception) -> None:
        logger.warning("the checkpoint of step %d is given up: %s", step, error)
        await asyncio.to_thread(shutil.rmtree, writing, ignore_errors=True)

    def _pause(self, error: OSError, writing: Path | None = None) -> None:
        if writing is not None:
            shutil.rmtree(writing, ignore_errors=True)
        if self.paused is None:
            newest = self._folder.newest_checkpoint()
            kept = f"{newest.name} stays the newest" if newest is not None else "there is none yet"
            self._say(f"[bold]checkpoints are paused[/bold]: {error}; {kept}. Training goes on, and they do when there is room")
        logger.warning("the checkpoint of step %d could not be written: %s", self._controller.step, error)
        self.paused = str(error)

    def _has_room(self) -> bool:
        """Whether as much is free as the newest checkpoint takes; without one, there is no telling."""
        newest = self._folder.newest_checkpoint()
        needed = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) if newest is not None else 0
        return shutil.disk_usage(self._folder.checkpoints).free > needed


async def load_checkpoint(checkpoint: Path, controller: Controller, group: LearnerGroup) -> dict[str, Any]:
    """Bring a checkpoint into freshly started roles, engines included.

    Args:
        checkpoint: its folder.
        controller: of the started roles.
        group: the learner's.

    Returns:
        The evaluations so far.
    """
    state = json.loads((checkpoint / STATE_FILE).read_text())
    timeout_s = controller.config.learner.timeout_s
    await answer_within(controller.replay.restore.remote(str(checkpoint / "replay")), timeout_s, "the replay actor to read its snapshot")
    await group.load_checkpoint(str(checkpoint / "learner"))
    controller.learner.covered(checkpoint, steps=state["step"])
    controller.restore(state)
    await controller.learner.survive(lambda: controller.transport.deliver(controller.version))
    return state["evaluations"]

"""A learner group that outlives its ranks: built again from the newest checkpoint, and the updates since then made again.

Owns what is needed to come back to where the group was. Must not know replay, the rollout actors or how ranks are placed.

Each update's rows stay referenced until a checkpoint stands for it. A group that is built again takes the same updates with the same rows,
which on CPUs gives the same weights bit for bit: no version is taken back, nothing in replay or in the prompt ledger has to change, and no
step is done twice as far as anybody else can see (docs/survival.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ray.exceptions import RayTaskError

from cluster.restarts import RestartBudget
from learner.group import LearnerGroupError

T = TypeVar("T")
logger = logging.getLogger(__name__)

KIND = "learner"
MAX_KEPT_STEPS = 500
"""Steps whose rows are kept without a checkpoint: what Ray's object store has no room for lies on its spill disk, which ends, too."""


class Group(Protocol):
    """The part of learner.group.LearnerGroup that is used here."""

    async def start(self) -> None:
        """Place the ranks and bring them together."""

    async def update(self, shards: Sequence[Any], *, step: int) -> dict[str, float]:
        """Take one training step's optimizer updates."""

    async def load_checkpoint(self, folder: str) -> None:
        """Go on from a checkpoint of an equal group."""

    async def close(self) -> None:
        """End the ranks."""


class LastingLearner:
    """A learner group that is built again when one of its ranks fails.

    Args:
        group: started.
        budget: of restarts.
        died: told the cause of each failure.
    """

    def __init__(self, group: Group, budget: RestartBudget, *, died: Callable[[str], None] = lambda cause: None) -> None:
        self._group = group
        self._budget = budget
        self._died = died
        self._checkpoint: Path | None = None  # None: the model that the group starts from
        self._covered = 0  # training steps that it stands for
        self._done = 0  # training steps that the group has taken
        self._kept: list[tuple[int, Sequence[Any]]] = []  # step and its shards, since the checkpoint
        self.restarts = 0

    async def update(self, shards: Sequence[Any], *, step: int) -> dict[str, float]:
        """Take a training step's updates, in as many attempts as it needs.

        Args:
            shards: one a rank; references, which are kept until a checkpoint stands for the step.
            step: from 0.

        Returns:
            Step metrics over all ranks.

        Raises:
            RestartBudgetExceeded: when ranks fail too often.
            LearnerGroupError: when the same call fails in the same way again, or the steps since the last checkpoint can't be made again.
        """
        trained = await self.survive(lambda: self._group.update(shards, step=step))
        self._done = step + 1
        self._kept.append((step, shards))
        del self._kept[:-MAX_KEPT_STEPS]
        return trained

    async def survive(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that needs the group, and make it again with a new group when a rank fails in it.

        Args:
            call: that may raise LearnerGroupError.

        Returns:
            What it returns.

        Raises:
            RestartBudgetExceeded: when ranks fail too often.
            LearnerGroupError: as update does.
        """
        before: str | None = None
        while True:
            try:
                return await call()
            except LearnerGroupError as error:
                mistake = str(error) if isinstance(error.__cause__, RayTaskError) else None
                if mistake is not None and mistake == before:
                    raise  # no accident: its code raises for this step, and would again
                before = mistake
                await self._rebuild(error)

    def covered(self, checkpoint: Path, *, steps: int) -> None:
        """Note a checkpoint that was written or restored; training may have gone on since.

        Args:
            checkpoint: its folder, which stays there until the next one is noted.
            steps: training steps done that it stands for.
        """
        self._checkpoint, self._covered, self._done = checkpoint, steps, max(self._done, steps)
        self._kept = [(step, shards) for step, shards in self._kept if step >= steps]

    async def _rebuild(self, error: LearnerGroupError) -> None:
        """Build the group again and bring it to where it was."""
        while True:
            logger.error("%s", error)
            self._died(str(error))
            if len(self._kept) < self._done - self._covered:
                raise LearnerGroupError(
                    f"{error}; the steps since the last checkpoint are too many to be made again (at most {MAX_KEPT_STEPS} are kept):"
                    " set checkpoint.every_steps, and go on with run.resume=true"
                ) from error
            self._budget.spend(KIND, str(error))
            self.restarts += 1
            where = self._checkpoint.name if self._checkpoint is not None else "the model that the run started from"
            logger.warning("the learner group is built again from %s, and takes %d steps again", where, len(self._kept))
            try:
                await self._group.close()
                await self._group.start()
                if self._checkpoint is not None:
                    await self._group.load_checkpoint(str(self._checkpoint / "learner"))
                for step, shards in list(self._kept):
                    await self._group.update(shards, step=step)
                return
            except LearnerGroupError as again:
                error = again
                await asyncio.sleep(0)

"""What goes on beside the steps of a run: health, status, and the requests to scale and to stop.

Owns what a status holds and how a request is answered. Must not know how steps are made (cluster.controller) or replicas replaced
(cluster.supervision).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cluster.contact import announce, sign_off
from cluster.controller import Controller
from cluster.desk import DeskClerk, open_desk
from cluster.health import DeathReport, HealthBoard, RoleState
from cluster.metrics import StateGauges
from cluster.progress import Progress
from cluster.restarts import RestartBudget
from cluster.role_watch import RoleWatch
from cluster.run_folder import RunFolder
from cluster.supervision import Supervisor
from cluster.waiting import first_cause
from conf.schema import Config

logger = logging.getLogger(__name__)
T = TypeVar("T")

LEAVE_TIMEOUT_S = 120.0  # for the step under way, when supervision has given up
LEAVE_AT_ONCE_S = 10.0  # for what is between two steps


class RunControl:
    """The run as its operators see it; an asynchronous context that is open as long as the run can be reached.

    Args:
        config: of the run.
        folder: of the run.
        progress: whose phase is told.
    """

    def __init__(self, config: Config, folder: RunFolder, progress: Progress) -> None:
        settings = config.supervision
        self._config = config
        self._folder = folder
        self._progress = progress
        self.board = HealthBoard(StateGauges(config.run.name))
        self.budget = RestartBudget(max_restarts=settings.max_restarts, window_s=settings.restart_window_s)
        self.stopping = False
        self.terminated = False
        self.metrics: dict[str, float] = {}  # of the newest step
        self.outcome = "failed"
        self._controller: Controller | None = None
        self._supervisor: Supervisor | None = None
        self._supervising: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None  # of the end after SIGTERM
        self._begin = time.time()

    async def __aenter__(self) -> RunControl:
        self._clerk = DeskClerk(await open_desk(self._config.run.name), self.status, {"scale": self._scale, "stop": self._stop})
        announce(self._folder, self._config.run.name)
        self._posting = asyncio.ensure_future(self._clerk.run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            self.outcome = "interrupted"
        elif error is not None:
            self.outcome = f"failed: {first_cause(error)}"
        await self.release()
        self._posting.cancel()
        await asyncio.gather(self._posting, return_exceptions=True)
        sign_off(self._folder, self.outcome)

    def watch(self, controller: Controller, supervisor: Supervisor) -> None:
        """Begin to supervise the roles of a stage.

        Args:
            controller: of its steps.
            supervisor: of its rollout actors.
        """
        settings = self._config.supervision
        beats = {"heartbeat_s": settings.heartbeat_s, "suspect_after": settings.suspect_after}
        replay = RoleWatch("replay", lambda: controller.replay.health.remote(), self.board, self.budget, **beats)
        self._controller, self._supervisor = controller, supervisor
        self._supervising = asyncio.ensure_future(_first_failure(supervisor.run(), replay.run()))
        self.learner_works("all ranks have started")

    async def release(self) -> None:
        """End the supervision of a stage's roles, before they are closed; fine when there is none."""
        if self._deadline is not None:
            self._deadline.cancel()  # the run ends by itself now
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)
            self.board.forget("learner", 0)
        self._supervising = self._supervisor = self._controller = None

    async def supervised(self, work: Awaitable[T]) -> T:
        """Do something for as long as the roles are looked after.

        Args:
            work: such as the controller's loops.

        Returns:
            Its result.

        Raises:
            RestartBudgetExceeded: when roles die faster than they may be replaced. The step under way was finished where it could be.
        """
        assert self._supervising is not None
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working, self._supervising}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() and not (self._supervising.done() and working.exception()):  # why supervision ended comes first
                return working.result()
            if self._controller is not None:
                self._controller.stop(at_once=True)
                if not self._controller.in_step:
                    await asyncio.wait({working}, timeout=LEAVE_AT_ONCE_S)
                if self._controller.in_step:  # from the beginning, or since a draw that came all the same
                    await asyncio.wait({working}, timeout=LEAVE_TIMEOUT_S)
            self._supervising.result()
            raise RuntimeError("supervision ended before the run")
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    def observe(self, metrics: dict[str, float]) -> None:
        """Take in a step.

        Args:
            metrics: of the step.
        """
        self.metrics = metrics
        self.learner_works("it takes steps again")
        if self._supervisor is not None:
            self._supervisor.follow(metrics)

    def learner_died(self, cause: str) -> None:
        """Take in the failure of a learner rank, which ends its group.

        Args:
            cause: in a sentence.
        """
        self.board.report(DeathReport(role="learner group", cause=cause.splitlines()[0]))
        if self.board.state_of("learner", 0) is not RoleState.restarting:
            self.board.enter("learner", 0, RoleState.dead, cause.splitlines()[0])
            self.board.enter("learner", 0, RoleState.restarting, "the group is built again")

    def terminate(self, interrupt: Callable[[], object]) -> None:
        """Take SIGTERM: end with a checkpoint as a request to stop does, if that is done soon; a second one interrupts at once.

        Args:
            interrupt: ends the run where it is; called after run.stop_grace_s, or now when no step has been made yet.
        """
        if self.terminated or self._controller is None:
            interrupt()
            return
        self.stopping = self.terminated = True
        logger.info("the run was sent SIGTERM")
        self._controller.stop(at_once=True)
        self._deadline = asyncio.get_running_loop().call_later(self._config.run.stop_grace_s, interrupt)

    def learner_works(self, reason: str) -> None:
        """Take in that the learner group does what it is there for.

        Args:
            reason: told when it is news.
        """
        self.board.enter("learner", 0, RoleState.healthy, reason)

    def status(self) -> dict[str, Any]:
        """How the run is.

        Returns:
            JSON-able: run, dir, pid, phase, stopping, step, num_steps, version, started, time, rollouts, roles, deaths, notices,
            restarts_left and metrics, which are those of the newest step.
        """
        controller, supervisor = self._controller, self._supervisor
        none = {"in_service": 0, "target": self._config.rollout.num_actors, "starting": 0, "leaving": 0}
        step = controller.step if controller is not None else 0
        return {
            "run": self._config.run.name,
            "dir": str(self._folder.path),
            "pid": os.getpid(),
            "phase": "stopping" if self.stopping else self._progress.current,
            "stopping": self.stopping,
            "step": step,
            "num_steps": self._config.run.num_steps,
            "version": step,
            "started": self._begin,
            "time": time.time(),
            "rollouts": supervisor.describe() if supervisor is not None else none,
            "roles": self.board.as_list(),
            "deaths": [death.as_dict() for death in self.board.deaths[-20:]],
            "num_deaths": len(self.board.deaths),
            "notices": supervisor.notices() if supervisor is not None else [],
            "restarts_left": {kind: self.budget.left(kind) for kind in ("rollout", "learner", "replay")},
            "metrics": {name: value for name, value in self.metrics.items() if math.isfinite(value)},
        }

    def _scale(self, values: dict[str, Any]) -> str:
        if self._supervisor is None:
            raise ValueError(f"the run has no rollout actors yet ({self._progress.current}); ask again when it trains")
        return self._supervisor.scale(int(values["rollouts"]))

    def _stop(self, values: dict[str, Any]) -> str:
        self.stopping = True
        logger.info("the run was asked to stop")
        if self._controller is None:
            return f"the run ends after what it is at: {self._progress.current}"
        nobody = self._supervisor is not None and self._supervisor.describe()["in_service"] == 0
        self._controller.stop(at_once=nobody)
        if nobody and not self._controller.in_step:
            return f"the run ends after step {self._controller.step} with a checkpoint: nobody samples for another one"
        return f"the run ends with a checkpoint once the step under way, {self._controller.step + 1}, is done"


async def _first_failure(*loops: Coroutine[Any, Any, None]) -> None:
    """Run endless loops side by side until one fails, with its own error and not with a group of one."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

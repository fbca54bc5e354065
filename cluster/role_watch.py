"""Watches an actor that Ray itself starts again, such as replay's: its states on the health board, and a report of each death.

Owns what is made of its answers. Must not know what the actor does, or how it comes back to where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError

from cluster.deaths import cause_of
from cluster.health import DeathReport, HealthBoard, RoleState
from cluster.restarts import RestartBudget
from cluster.waiting import answer_within


class RoleWatch:
    """Asks one actor how it is, again and again.

    Args:
        kind: of role, which is its name, too: there is one.
        ask: its method that answers at once, with its process id.
        board: hears of its states and deaths.
        heartbeat_s: between two questions.
        suspect_after: unanswered ones in a row.
        budget: of restarts, which Ray's count against.
    """

    def __init__(
        self,
        kind: str,
        ask: Callable[[], Awaitable[dict[str, Any]]],
        board: HealthBoard,
        budget: RestartBudget,
        *,
        heartbeat_s: float,
        suspect_after: int,
    ) -> None:
        self._kind, self._ask, self._board, self._budget = kind, ask, board, budget
        self._heartbeat_s, self._suspect_after = heartbeat_s, suspect_after
        self._pid: int | None = None
        self._missed = 0

    async def run(self) -> None:
        """Ask until cancelled.

        Raises:
            RestartBudgetExceeded: when it dies too often.
        """
        try:
            while True:
                await self.beat()
                await asyncio.sleep(self._heartbeat_s)
        finally:
            self._board.forget(self._kind, 0)

    async def beat(self) -> None:
        """Ask once."""
        try:
            said = await answer_within(self._ask(), self._heartbeat_s, f"the {self._kind} actor to say how it is")
        except TimeoutError:
            self._missed += 1
            if self._missed >= self._suspect_after and self._board.state_of(self._kind, 0) is RoleState.healthy:
                told = f"{self._missed} heartbeats of {self._heartbeat_s:g} s without an answer"
                self._board.enter(self._kind, 0, RoleState.suspect, told)
            return
        except RayActorError as error:
            self._died(cause_of(error))
            return
        self._missed = 0
        if self._pid is not None and said["pid"] != self._pid:
            self._died("its process ended, and Ray has started it again")
        self._pid = said["pid"]
        self._board.enter(self._kind, 0, RoleState.healthy, f"pid {self._pid} answers")

    def _died(self, cause: str) -> None:
        if self._board.state_of(self._kind, 0) in (RoleState.dead, RoleState.restarting):
            return
        self._board.report(DeathReport(role=f"{self._kind} actor", cause=cause, pid=self._pid))
        self._pid = None
        self._board.enter(self._kind, 0, RoleState.dead, cause)
        self._board.enter(self._kind, 0, RoleState.restarting, "Ray starts it again")
        self._budget.spend(self._kind, f"{self._kind} actor: {cause}")

"""Rollout actors as those who answer: each that is lost gives its place to a new one.

Owns this tie between the fleet and the desk. Must not know what is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.answering import Answerer, QuestionDesk
from cluster.fleet import RolloutFleet
from cluster.replica import Replica
from cluster.restarts import RestartBudget
from conf.schema import Config

Q = TypeVar("Q")
A = TypeVar("A")


class Answerers:
    """The rollout actors of an evaluation.

    Args:
        config: its supervision section bounds how many are replaced.
        fleet: started.
    """

    def __init__(self, config: Config, fleet: RolloutFleet) -> None:
        self._fleet = fleet
        self._budget = RestartBudget(max_restarts=config.supervision.max_restarts, window_s=config.supervision.restart_window_s)
        self._latest = ""  # why the last one was lost

    async def serve(self, desk: QuestionDesk[Q, A], ask: Callable[[Replica, Q], Awaitable[A]]) -> None:
        """Answer all questions of a desk.

        Args:
            desk: with questions.
            ask: has a replica answer one; whatever it raises costs the replica.

        Raises:
            NobodyLeftError: when all are lost and no more may be started.
        """

        def answerer(replica: Replica) -> Answerer[Q, A]:
            async def guarded(question: Q) -> A:
                try:
                    return await ask(replica, question)
                except Exception as error:
                    if replica.lost is None:
                        self._latest = f"{replica.name}: {error}"
                        self._fleet.lose(replica, str(error))
                    raise

            return Answerer(name=replica.name, ask=guarded)

        async def replace() -> Answerer[Q, A]:
            self._budget.spend("rollout actor", self._latest)
            replica = await self._fleet.add()
            self._fleet.enlist(replica)
            return answerer(replica)

        desk.replace = replace
        await desk.serve([answerer(replica) for replica in list(self._fleet.replicas)])

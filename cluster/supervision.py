"""Keeps a run's rollout actors at the number that is wanted: notices who is dead or stalled, replaces, adds and lets go.

Two loops beside the run's own: one asks every replica how it is, one brings their number to the target. A replacement serves only after a
completed weight sync (WeightTransport.join). Must not know prompts: whoever waited for a lost replica issues its prompts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup

from cluster.deaths import cause_of, report_death
from cluster.fleet import KIND, RolloutFleet
from cluster.health import HealthBoard, RoleState
from cluster.placement import Node, demand_against_supply
from cluster.replica import Replica
from cluster.restarts import RestartBudget
from cluster.scaling import ScalingPolicy
from cluster.session import free_nodes
from cluster.transport import WeightTransport
from cluster.waiting import answer_within
from conf.resources import rollout_bundle
from conf.schema import Config
from learner.group import LearnerGroupError

logger = logging.getLogger(__name__)

PENDING_NOTICE_S = 20.0  # a place that takes longer is told, and again from time to time
MAX_ROLLOUTS = 4096  # more is a slip of the keyboard
TICK_S = 1.0
REPORTS_TIMEOUT_S = 3.0  # part of the ten seconds that Ctrl-C may take


class Supervisor:
    """Watches and scales the rollout fleet of one run.

    Args:
        config: of the run.
        fleet: whose replicas are watched.
        transport: brings newcomers the version in service.
        board: hears of deaths.
        budget: of restarts.
    """

    def __init__(self, config: Config, fleet: RolloutFleet, transport: WeightTransport, board: HealthBoard, budget: RestartBudget) -> None:
        self._config = config
        self._fleet = fleet
        self._transport = transport
        self._board = board
        self._budget = budget
        self.target = config.rollout.num_actors
        self._policy = None
        if (low := config.rollout.min_actors) is not None and (high := config.rollout.max_actors) is not None:
            self._policy = ScalingPolicy(low=low, high=high, window_steps=config.supervision.scale_window_steps)
        self._joining: dict[int, asyncio.Task[None]] = {}  # by slot
        self._retiring: set[asyncio.Task[None]] = set()
        self._buried = 0  # of fleet.lost
        self._reporting: set[asyncio.Task[None]] = set()
        self._unplaced: set[int] = set()  # slots whose newcomers have no place yet
        self.pending: dict[int, str] = {}  # slot -> why, where that takes long

    async def run(self) -> None:
        """Watch and scale until cancelled.

        Raises:
            RestartBudgetExceeded: when replicas die faster than they may be replaced; with the first cause on top.
        """
        watching, scaling = asyncio.ensure_future(self._watch()), asyncio.ensure_future(self._keep_up())
        try:
            await asyncio.wait({watching, scaling}, return_when=asyncio.FIRST_COMPLETED)
            for loop in (scaling, watching):
                if loop.done():
                    loop.result()
        finally:
            for task in (watching, scaling, *self._joining.values(), *self._retiring):
                task.cancel()
            await asyncio.gather(watching, scaling, *self._joining.values(), *self._retiring, return_exceptions=True)
            await self.reported()  # who waits for a replica goes on waiting: its failure would end the step under way, which is to be kept

    def scale(self, target: int) -> str:
        """Ask for another number of replicas; the loop brings it about.

        Args:
            target: wanted.

        Returns:
            What will happen, in a sentence.

        Raises:
            ValueError: when that is no number of replicas.
        """
        if not 0 <= target <= MAX_ROLLOUTS:
            raise ValueError(f"{target} is no number of rollout actors, expected 0 to {MAX_ROLLOUTS}")
        before, self.target = self.target, target
        self._fleet.changed.set()
        logger.info("the run is to have %d rollout actors instead of %d", target, before)
        if target == before:
            return f"{target} rollout actors are wanted already"
        if target < before:
            return f"{target} rollout actors instead of {before}: those that leave finish their prompts first"
        return f"{target} rollout actors instead of {before}: each newcomer serves once it has the version in service"

    def follow(self, metrics: dict[str, float]) -> None:
        """Let a run that scales itself see a step.

        Args:
            metrics: of the step.
        """
        if self._policy is None:
            return
        serving = len(self._fleet.replicas)
        settled = not self._joining and not self._fleet.leaving and serving == self.target
        wanted = self._policy.observe(metrics, serving=serving, settled=settled)
        if wanted is not None and wanted != self.target:
            logger.info("%s", self.scale(wanted))

    def describe(self) -> dict[str, int]:
        """How many there are and how many there should be.

        Returns:
            in_service, target, starting, leaving.
        """
        return {
            "in_service": len(self._fleet.replicas),
            "target": self.target,
            "starting": len(self._joining),
            "leaving": len(self._fleet.leaving),
        }

    def notices(self) -> list[str]:
        """What somebody should know now.

        Returns:
            Sentences.
        """
        notices = [f"rollout {slot}: {why}" for slot, why in sorted(self.pending.items())]
        if not self._fleet.replicas:
            notices.insert(0, "no rollout actor is in service: the run goes on with what replay has and waits for one")
        return notices

    async def reported(self) -> None:
        """Wait until every death that was noticed has its report, but not long: the run may be ending."""
        if self._reporting:
            await asyncio.wait(self._reporting, timeout=REPORTS_TIMEOUT_S)

    async def _watch(self) -> None:
        """Ask every replica how it is, each heartbeat_s."""
        while True:
            begin = time.monotonic()
            await asyncio.gather(*(self._beat(replica) for replica in [*self._fleet.replicas, *self._fleet.leaving]))
            await asyncio.sleep(max(0.0, self._config.supervision.heartbeat_s - (time.monotonic() - begin)))

    async def _beat(self, replica: Replica) -> None:
        settings = self._config.supervision
        try:
            said = await answer_within(replica.actor.health.remote(), settings.heartbeat_s, f"{replica.name} to say how it is")
        except RayActorError as error:
            self._fleet.lose(replica, cause_of(error))
            return
        except TimeoutError:
            said = {"engine": "silent"}
        if replica.lost is not None:
            return
        if said["engine"] == "gone":
            self._fleet.lose(replica, "its engine's process is gone")
        elif said["engine"] == "running":
            replica.missed = 0
            if replica.suspect:
                self._fleet.trust(replica)
            self._board.holds(KIND, replica.slot, said["version"])
        else:
            self._miss(replica, "its engine's process is stopped" if said["engine"] == "stopped" else "it does not answer")

    def _miss(self, replica: Replica, what: str) -> None:
        settings = self._config.supervision
        replica.missed += 1
        told = f"{what}, {replica.missed} heartbeats of {settings.heartbeat_s:g} s in a row"
        if replica.missed >= settings.dead_after:
            self._fleet.lose(replica, told)
        elif replica.missed >= settings.suspect_after and not replica.suspect:
            self._fleet.suspect(replica, f"{replica.name}: {told}")

    async def _keep_up(self) -> None:
        """Bury the dead, then add or let go, whenever the fleet has changed."""
        while True:
            self._fleet.changed.clear()
            self._bury()
            self._fill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._fleet.changed.wait()

    def _bury(self) -> None:
        """Account for each death once, and have it reported."""
        while self._buried < len(self._fleet.lost):
            replica = self._fleet.lost[self._buried]
            self._buried += 1
            reporting = asyncio.ensure_future(self._report(replica))
            self._reporting.add(reporting)
            reporting.add_done_callback(self._reporting.discard)
            self._budget.spend(KIND, f"{replica.name}: {replica.lost}")

    async def _report(self, replica: Replica) -> None:
        lines = self._config.supervision.log_lines
        self._board.report(await report_death(replica.name, str(replica.lost), replica.place, log_lines=lines))

    def _fill(self) -> None:
        """Bring the number of replicas towards the target; the youngest and idlest leave first."""
        for slot in [slot for slot, task in self._joining.items() if task.done()]:
            del self._joining[slot]
        serving = {replica.slot for replica in self._fleet.replicas}
        joining = [slot for slot in self._joining if slot not in serving]  # one that was just enlisted is both for a moment
        missing = self.target - len(serving) - len(joining)
        dead = [role.rank for role in self._board.of(KIND) if role.state is RoleState.dead and role.rank not in self._joining]
        for _ in range(missing):
            slot = dead.pop(0) if dead else self._fleet.free_slot(self._joining)
            if self._board.state_of(KIND, slot) is RoleState.dead:
                self._board.enter(KIND, slot, RoleState.restarting, "a successor is on its way")
            self._joining[slot] = asyncio.ensure_future(self._join(slot))
        for slot in joining[::-1][: max(0, -missing)]:
            self._joining.pop(slot).cancel()
            missing += 1
        leaving = sorted(self._fleet.replicas, key=lambda replica: (replica.running, -replica.index))[: max(0, -missing)]
        for replica in leaving:
            self._retire(replica)
        if missing <= 0:
            for slot in dead:  # nobody takes their place
                self._board.forget(KIND, slot)

    def _retire(self, replica: Replica) -> None:
        retiring = asyncio.ensure_future(self._fleet.retire(replica, timeout_s=self._config.supervision.drain_timeout_s))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def _join(self, slot: int) -> None:
        """One newcomer, from its place to its service. Its failure is buried like any other's, and another one is begun."""
        try:
            await self._transport.join(slot, placed=self._placed)
        except LearnerGroupError as error:  # not the newcomer's fault: whoever drives the learner deals with it
            logger.warning("a rollout actor could not join, since the learner failed: %s", cause_of(error))
            self._give_up(slot, str(error))
        except asyncio.CancelledError:
            self._board.forget(KIND, slot)
            raise
        except Exception as error:
            logger.warning("a rollout actor did not join: %s", cause_of(error))
        finally:
            self.pending.pop(slot, None)
            self._fleet.changed.set()

    def _give_up(self, slot: int, reason: str) -> None:
        if self._board.state_of(KIND, slot) not in (None, RoleState.dead):
            self._board.enter(KIND, slot, RoleState.dead, reason)

    async def _placed(self, replica: Replica) -> None:
        """Wait for a place, as long as it takes: a node may come back or be added; who waits is told what is missing where."""
        ready = asyncio.ensure_future(_ready(replica.placement))
        self._unplaced.add(replica.slot)
        try:
            while not ready.done():
                await asyncio.wait({ready}, timeout=PENDING_NOTICE_S)
                if not ready.done():
                    self.pending[replica.slot] = why = await self._why_pending()
                    logger.warning("%s waits for a place: %s", replica.name, why)
            ready.result()
        finally:
            ready.cancel()
            self._unplaced.discard(replica.slot)
            self.pending.pop(replica.slot, None)

    async def _why_pending(self) -> str:
        try:
            nodes = await asyncio.to_thread(_free_nodes)
        except Exception as error:  # the control store may be away for a while: that is no reason to give up the wait
            return f"what the nodes have can't be read now: {cause_of(error)}"
        return demand_against_supply([rollout_bundle(self._config)] * max(1, len(self._unplaced)), nodes)


async def _ready(placement: PlacementGroup) -> Any:
    return await placement.ready()


def _free_nodes() -> list[Node]:
    return free_nodes() if ray.is_initialized() else []

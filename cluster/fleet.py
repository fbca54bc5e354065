"""The rollout replicas as the controller sees them: start, hand out work, bring weights, evaluate, end.

A replica that dies, stalls or answers wrongly is taken out of service, alone; its work goes to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.actor import RolloutActor, RolloutReceipt
from actors.answers import EvaluatedAnswer
from actors.engine import EngineError
from actors.intake import WeightReceipt
from actors.worker import RolloutRequest
from algorithms.types import Prompt
from cluster.deaths import Whereabouts, cause_of
from cluster.health import HealthBoard, RoleState
from cluster.replica import BusyClock, Replica, ReplicaLostError
from cluster.waiting import answer_within
from conf.resources import rollout_bundle
from conf.schema import Config, EvaluationMode
from conf.sizes import in_lockstep
from weights.manifest import EarlyPart, Shipment

logger = logging.getLogger(__name__)

EVALUATION_CHUNK = 64  # questions of one call: enough to fill an engine's batch, small enough to share out evenly
KIND = "rollout"  # on the health board
DRAIN_POLL_S = 0.1
SOMEONE_POLL_S = 1.0  # a missed wake-up costs this much and no more
CLOSE_TIMEOUT_S = 3.0  # engines end within this or are killed; part of the ten seconds that Ctrl-C may take


class NoReplicaError(RuntimeError):
    """All rollout actors are out of service; the message says why each is."""


@dataclass
class RolloutFleet:
    """All replicas of a run.

    Args:
        config: of the run.
        model_path: the engines' starting weights.
        replay: where groups go; None: only evaluation.
        board: hears of every replica's state.
        supervised: successors of lost replicas are on their way (cluster.supervision), so that having none is something to wait for.
    """

    config: Config
    model_path: str
    replay: ActorHandle | None
    board: HealthBoard = field(default_factory=HealthBoard)
    supervised: bool = False
    busy: BusyClock = field(default_factory=BusyClock)
    replicas: list[Replica] = field(default_factory=list)  # in service
    leaving: list[Replica] = field(default_factory=list)  # they finish what they have
    lost: list[Replica] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # set whenever a replica comes, goes or recovers
    absences: int = 0  # how often the last one in service was lost or let go
    _absence_told: int = -1
    _placed: int = 0

    async def start(self, *, version: int) -> None:
        """Place and start all replicas side by side.

        Args:
            version: policy version of the weights in model_path.

        Raises:
            TimeoutError: naming the replica that was waited for.
        """
        self.replicas = [self._place(slot) for slot in range(self.config.rollout.num_actors)]
        await asyncio.gather(*(self._start(replica, version) for replica in self.replicas))
        for replica in self.replicas:
            self._enter(replica, RoleState.healthy, f"{replica.name} serves version {version}")

    async def add(self, slot: int | None = None, *, placed: Callable[[Replica], Awaitable[None]] | None = None) -> Replica:
        """Place and start one more replica, with the weights in model_path; it gets no prompt before it is enlisted.

        Args:
            slot: that it takes over; None: the lowest free one.
            placed: waits until the replica has a place on the cluster; None: the start's deadline covers that, too.

        Returns:
            The replica, for whoever brings it the current weights.

        Raises:
            TimeoutError: naming it.
        """
        replica = self._place(self.free_slot() if slot is None else slot)
        try:
            if placed is not None:
                await placed(replica)
            await self._start(replica, 0)
        except asyncio.CancelledError:
            self.abandon(replica, "it is not needed any more")
            raise
        except BaseException as error:
            self.lose(replica, f"it did not start: {cause_of(error)}")
            raise
        self._enter(replica, RoleState.stale, f"{replica.name} has started and waits for the version in service")
        return replica

    def free_slot(self, promised: Iterable[int] = ()) -> int:
        """The lowest rank that nobody has.

        Args:
            promised: ranks of replicas that are to be placed next.

        Returns:
            From 0.
        """
        taken = {role.rank for role in self.board.of(KIND)} | set(promised)
        return next(slot for slot in itertools.count() if slot not in taken)

    def enlist(self, replica: Replica) -> None:
        """Put a replica into service.

        Args:
            replica: with the weights of the version in service.
        """
        self.replicas.append(replica)
        self._enter(replica, RoleState.healthy, f"{replica.name} joined")

    def lose(self, replica: Replica, reason: str) -> None:
        """Take a replica out of service and end it; calls that wait for it raise ReplicaLostError. Losing it twice is fine.

        Args:
            replica: in service or about to be.
            reason: told in the log and in those errors.
        """
        if replica.lost is not None:
            return
        logger.error("%s is out of service: %s", replica.name, reason)
        replica.end(reason)
        self.lost.append(replica)
        for group in (self.replicas, self.leaving):
            if replica in group:
                group.remove(replica)
        self._enter(replica, RoleState.dead, f"{replica.name}: {reason}")

    def abandon(self, replica: Replica, reason: str) -> None:
        """End a replica that has not been put into service, through no fault of its own.

        Args:
            replica: started or starting.
            reason: told on the health board.
        """
        if replica.lost is None:
            replica.end(reason)
            self._enter(replica, RoleState.dead, f"{replica.name}: {reason}")

    async def retire(self, replica: Replica, *, timeout_s: float) -> None:
        """Let a replica finish what it has, give it nothing more, and end it.

        Args:
            replica: in service.
            timeout_s: past it, its prompts are given to others.
        """
        self.replicas.remove(replica)
        self.leaving.append(replica)
        self._enter(replica, RoleState.stale, f"{replica.name} finishes {replica.running} prompts and leaves")
        deadline = time.monotonic() + timeout_s
        while replica.running and replica.lost is None and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
        if replica.lost is None:
            self.leaving.remove(replica)
            replica.retired = True
            try:
                await answer_within(replica.actor.close.remote(), CLOSE_TIMEOUT_S, f"{replica.name} to close")
            except Exception as error:  # it is ended all the same
                logger.info("%s did not close by itself: %s", replica.name, error)
            replica.end("it was not needed any more")
        self.board.forget(KIND, replica.slot)
        self.changed.set()

    def suspect(self, replica: Replica, reason: str) -> None:
        """Give a replica no new prompts until it is trusted again.

        Args:
            replica: in service.
            reason: for the log.
        """
        replica.suspect = True
        self._enter(replica, RoleState.suspect, reason)

    def trust(self, replica: Replica) -> None:
        """Take a suspicion back.

        Args:
            replica: in service.
        """
        replica.suspect = False
        self._enter(replica, RoleState.stale if replica in self.leaving else RoleState.healthy, f"{replica.name} answers again")

    def _enter(self, replica: Replica, state: RoleState, reason: str) -> None:
        if not self.replicas and state in (RoleState.dead, RoleState.stale):
            self.absences += 1
        self.board.enter(KIND, replica.slot, state, reason)
        self.changed.set()

    async def someone(self) -> None:
        """Wait until a replica can be given prompts.

        Raises:
            NoReplicaError: when none is left and none will come, or none came in time; it says why each is out of service.
        """
        timeout_s = self.config.supervision.no_rollouts_timeout_s
        deadline = time.monotonic() + timeout_s
        if not self.replicas and self.supervised and self._absence_told != self.absences:
            self._absence_told = self.absences  # once, however many calls wait
            logger.warning("no rollout actor is in service: waiting up to %g s for one", timeout_s)
        while not any(not replica.suspect for replica in self.replicas):
            if not self.replicas:
                self.must_have_replicas()
            if time.monotonic() >= deadline:
                raise NoReplicaError(f"waited {timeout_s:g} s for a rollout actor to come into service ({self._told()})")
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SOMEONE_POLL_S):
                    await self.changed.wait()

    def must_have_replicas(self) -> None:
        """Refuse to go on with nobody to sample and nobody to come.

        Raises:
            NoReplicaError: saying why each replica is out of service.
        """
        if not self.replicas and not self.supervised:
            raise NoReplicaError(f"no rollout actor is left in service ({self._told()})")

    def _told(self) -> str:
        return "; ".join(f"{replica.name}: {replica.lost}" for replica in self.lost) or "none was started"

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """Hand prompts to the least busy replica.

        Args:
            requests: of one call.

        Returns:
            Its receipt.

        Raises:
            ReplicaLostError: naming the replica, which is out of service now; the requests are to be handed out again.
            NoReplicaError: when there is none.
        """
        await self.someone()
        replica = min((r for r in self.replicas if not r.suspect), key=lambda r: (r.running, r.index))
        replica.running += len(requests)
        self.busy.start()
        try:
            task = f"to roll out {len(requests)} prompts"
            return await self._answer(replica, replica.actor.rollout.remote(requests), self.config.rollout.timeout_s, task)
        finally:
            self.busy.stop()
            replica.running -= len(requests)

    async def expect_weights(self, replica: Replica, paths: tuple[str, ...], version: int) -> None:
        """Have one engine read the learner's files while they are being written.

        Args:
            replica: on the learner's node.
            paths: as the version before had them.
            version: that they are about to be.

        Raises:
            ReplicaLostError: when it died or did not answer in time; it is out of service now.
            WeightUpdateError: when it can't read them; the version must come another way.
        """
        call = replica.actor.expect_weights.remote(paths, version)
        await self._answer(replica, call, self.config.weights.timeout_s, f"to read version {version} ahead")

    async def send_early(self, replica: Replica, early: EarlyPart) -> None:
        """Bring one bucket of a version that is still being published to the node of one engine.

        Args:
            replica: that holds what the part refers to.
            early: the bucket.

        Raises:
            ReplicaLostError: when it died or did not answer in time; it is out of service now.
            WeightUpdateError: when it can't use it; the version must come whole.
        """
        call = replica.actor.take_early.remote(early)
        await self._answer(replica, call, self.config.weights.timeout_s, f"to take bucket {early.index} of version {early.version}")

    async def update_weights(self, replica: Replica, shipment: Shipment) -> WeightReceipt:
        """Bring a published version into one engine.

        Args:
            replica: in service or about to be.
            shipment: that it can use.

        Returns:
            What the replica answers.

        Raises:
            ReplicaLostError: when it died or did not answer in time; it is out of service now.
            WeightUpdateError: when it refuses the shipment; it goes on with its old weights.
        """
        task = f"to take version {shipment.manifest.version}"
        return await self._answer(replica, replica.actor.update_weights.remote(shipment), self.config.weights.timeout_s, task)

    async def score(self, replica: Replica, prompt: Prompt, response_token_ids: list[int]) -> list[float]:
        """One engine's log-probs of a given response; see RolloutActor.score.

        Args:
            replica: in service.
            prompt: with its images.
            response_token_ids: [R].

        Returns:
            [R] nats.

        Raises:
            ReplicaLostError: when it died or did not answer in time; it is out of service now.
        """
        call = replica.actor.score.remote(prompt, response_token_ids)
        return await self._answer(replica, call, self.config.weights.timeout_s, "to score the probe")

    async def evaluate(
        self, prompts: Sequence[Prompt], *, max_response_tokens: int, mode: EvaluationMode = EvaluationMode.none
    ) -> tuple[list[EvaluatedAnswer], list[tuple[str, str]]]:
        """Answer questions greedily on all replicas.

        Args:
            prompts: the questions.
            max_response_tokens: limit of an answer.
            mode: what counts as the answer.

        Returns:
            Answers in the questions' order, and (prompt_id, reason) of those that can't be used.

        Raises:
            NoReplicaError: when the last replica was lost.
        """
        # Two calls at a time on each replica, so that its engine never waits for the next chunk; in lockstep one that fills the engine.
        lockstep = in_lockstep(self.config) and self.replay is not None
        size, calls = (max(EVALUATION_CHUNK, self.config.rollout.max_concurrent_sequences), 1) if lockstep else (EVALUATION_CHUNK, 2)
        chunks = [list(prompts[i : i + size]) for i in range(0, len(prompts), size)]
        results: list[Any] = [None] * len(chunks)
        waiting = deque(range(len(chunks)))

        async def work(replica: Replica) -> None:
            while waiting:
                number = waiting.popleft()
                call = replica.actor.evaluate.remote(chunks[number], max_response_tokens, mode)
                try:
                    task = f"to answer {len(chunks[number])} questions"
                    results[number] = await self._answer(replica, call, self.config.rollout.timeout_s, task)
                except ReplicaLostError:
                    waiting.append(number)
                    return

        while waiting:
            await self.someone()
            await asyncio.gather(*(work(replica) for replica in self.replicas for _ in range(calls)))
        return [a for answers, _ in results for a in answers], [b for _, bad in results for b in bad]

    async def grade_counts(self) -> dict[str, int]:
        """How answers were decided on all replicas in service, by reason.

        Returns:
            Counts since the start.
        """
        totals: dict[str, int] = {}
        for replica in list(self.replicas):
            try:
                counts = await self._answer(replica, replica.actor.grade_counts.remote(), self.config.weights.timeout_s, "to count grades")
            except ReplicaLostError:
                continue
            for reason, count in counts.items():
                totals[reason] = totals.get(reason, 0) + count
        return totals

    async def close(self) -> None:
        """End all replicas: politely, then for good."""
        ending = [*self.replicas, *self.leaving]
        closing = (answer_within(r.actor.close.remote(), CLOSE_TIMEOUT_S, f"{r.name} to close") for r in ending)
        for replica, result in zip(ending, await asyncio.gather(*closing, return_exceptions=True), strict=True):
            if isinstance(result, BaseException):
                logger.info("%s did not close by itself: %s", replica.name, result)
            replica.end("the run has ended")
        self.replicas, self.leaving = [], []
        for role in self.board.of(KIND):
            self.board.forget(KIND, role.rank)

    def _place(self, slot: int) -> Replica:
        config, index = self.config, self._placed
        self._placed += 1
        self.board.enter(KIND, slot, RoleState.starting, f"rollout actor {index} waits for a place and starts its engine")
        resources = rollout_bundle(config)
        placement = placement_group([resources], strategy="PACK")
        actor = RolloutActor.options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.rollout.threads), "OMP_WAIT_POLICY": "PASSIVE"}},
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=placement),
        ).remote(config, self.model_path, self.replay, index)
        return Replica(index=index, actor=actor, placement=placement, slot=slot)

    async def _start(self, replica: Replica, version: int) -> None:
        deadline = time.monotonic() + self.config.rollout.start_timeout_s
        said = await answer_within(replica.actor.whereabouts.remote(), deadline - time.monotonic(), f"{replica.name} to come up")
        replica.place = Whereabouts(node_id=said["node"], address=said["address"], pid=said["pid"], worker_id=said["worker"])
        await answer_within(replica.actor.start.remote(version), deadline - time.monotonic(), f"{replica.name} to start its engine")

    async def _answer(self, replica: Replica, reference: Any, timeout_s: float, task: str) -> Any:
        """Await a replica's answer; its death, its engine's and a missed deadline cost the replica, nothing else."""
        try:
            return await replica.answer(reference, timeout_s, task)
        except (RayActorError, EngineError, TimeoutError) as error:
            reason = cause_of(error)
            if not replica.retired:  # it is being closed, and what it was asked beside its prompts ends with it
                self.lose(replica, reason)
            raise ReplicaLostError(f"{replica.name} is out of service: {reason}") from error

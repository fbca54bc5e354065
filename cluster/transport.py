"""How a new version gets from the learner group into the rollout fleet: verified files and parts, or broadcast by NCCL.

Owns which way each replica's weights go and what a failure costs. The only place that knows both ends of the way.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from actors.intake import WeightReceipt
from cluster.fleet import RolloutFleet
from cluster.probe import EngineProbe
from cluster.replica import Replica, ReplicaLostError
from conf.schema import Config, Device
from learner.group import LearnerGroup, LearnerGroupError
from weights.manifest import EarlyPart, SenderLostError, Shipment, WeightUpdateError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What one sync took and what the engines make of it."""

    paused_s: float  # the longest time that a replica's generation was paused
    sent_bytes: int  # through the object store, to all replicas together
    num_replicas: int  # in service after it
    mismatch: float = math.nan  # largest difference between an engine's and the learner's log-probs of the probe, nats

    def metrics(self) -> dict[str, float]:
        """For the step's metrics; what was not measured is left out."""
        measured = {
            "time/weight_sync_paused_s": self.paused_s,
            "weights/sent_bytes": float(self.sent_bytes),
            "rollout/actors": float(self.num_replicas),
            "kl/engine_mismatch": self.mismatch,
        }
        return {name: value for name, value in measured.items() if not math.isnan(value)}


class WeightTransport(Protocol):
    """Brings versions into service."""

    async def deliver(self, version: int) -> SyncReport:
        """Bring the learner's weights into every engine.

        Args:
            version: that they become.

        Returns:
            What it took.

        Raises:
            LearnerGroupError: when the learner failed.
            NoReplicaError: when no rollout actor is left.
        """

    async def join(self, slot: int | None = None, *, placed: Callable[[Replica], Awaitable[None]] | None = None) -> Replica:
        """Start one more rollout actor and put it into service with the current version.

        Args:
            slot: see RolloutFleet.add.
            placed: see RolloutFleet.add.

        Returns:
            The replica; it has had no prompt before the current weights.

        Raises:
            TimeoutError: when it did not start in time.
            ReplicaLostError: when it did not take the weights.
        """


class StagedTransport:
    """Verified files for replicas on the learner's node; changes or whole buckets through Ray's object store for the others.

    A bucket is on its way to them while the learner looks at the next one.

    A replica that dies, stalls, refuses whole weights or answers another checksum is taken out of service, alone.

    Args:
        learner: gives out the weights.
        fleet: takes them.
        probe: scored at both ends after each sync; None: nothing is scored.
    """

    def __init__(self, learner: LearnerGroup, fleet: RolloutFleet, probe: EngineProbe | None) -> None:
        self._learner = learner
        self._fleet = fleet
        self._probe = probe
        self._learner_node: str | None = None
        self._published: Shipment | None = None  # the version in service
        self._lock = asyncio.Lock()  # the published files are read while it is held, and replaced while it is held

    async def deliver(self, version: int) -> SyncReport:
        """See WeightTransport.deliver."""
        async with self._lock:
            self._learner_node = (await self._learner.health())[0]["node"]  # asked each time: a group may be built again elsewhere
            replicas = list(self._fleet.replicas)
            by_parts = [replica for replica in replicas if not self._reads_files(replica)]
            ahead = {replica: [asyncio.create_task(self._read_ahead(replica, version))] for replica in replicas}

            def hand_on(early: EarlyPart) -> None:
                for replica in by_parts:
                    if replica.checksum == early.base:
                        ahead[replica].append(asyncio.create_task(self._send_early(replica, early)))

            try:
                published = self._published = await self._learner.publish(version, compare=bool(by_parts), early=hand_on)
            except BaseException:
                await _ended([task for tasks in ahead.values() for task in tasks])
                raise
            # The learner scores its probe while the engines load.
            expected, *outcomes = await asyncio.gather(
                self._expected(), *(self._bring(replica, published, ahead[replica]) for replica in replicas), return_exceptions=True
            )
            for outcome in (expected, *outcomes):
                if isinstance(outcome, BaseException) and not isinstance(outcome, ReplicaLostError):
                    raise outcome
            self._fleet.must_have_replicas()
            taken = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
            return SyncReport(
                paused_s=max((receipt.paused_s for receipt, _ in taken), default=0.0),
                sent_bytes=sum(nbytes for _, nbytes in taken),
                num_replicas=len(self._fleet.replicas),
                mismatch=await _mismatch(self._fleet, self._probe, expected),
            )

    async def join(self, slot: int | None = None, *, placed: Callable[[Replica], Awaitable[None]] | None = None) -> Replica:
        """See WeightTransport.join."""
        replica = await self._fleet.add(slot, placed=placed)
        try:
            async with self._lock:
                if self._published is not None:
                    await self._bring(replica, self._published)
                self._fleet.enlist(replica)
        except BaseException as error:
            self._fleet.abandon(replica, f"it could not be brought the version in service: {_line(error)}")
            raise
        return replica

    async def _expected(self) -> NDArray[np.float32] | None:
        return await self._probe.expected(self._learner) if self._probe is not None else None

    async def _read_ahead(self, replica: Replica, version: int) -> None:
        """Have a replica on the learner's node read the files while they are written. Raises ReplicaLostError."""
        if self._published is None or self._published.paths is None or not self._reads_files(replica):
            return
        try:
            await self._fleet.expect_weights(replica, self._published.paths, version)
        except (WeightUpdateError, RayTaskError) as error:
            logger.info("%s reads version %d when it is whole: %s", replica.name, version, _line(error))

    async def _send_early(self, replica: Replica, early: EarlyPart) -> None:
        """Have a replica elsewhere take a bucket while the others are written. Raises ReplicaLostError."""
        try:
            await self._fleet.send_early(replica, early)
        except (WeightUpdateError, RayTaskError) as error:
            logger.info("%s takes bucket %d of version %d with the rest: %s", replica.name, early.index, early.version, _line(error))

    async def _bring(
        self, replica: Replica, published: Shipment, ahead: Sequence[asyncio.Task[None]] = ()
    ) -> tuple[WeightReceipt, int]:
        """One replica's receipt and the bytes sent to it. Raises ReplicaLostError, or the learner's error when it is the one that died."""
        try:
            await asyncio.gather(*ahead)
        except BaseException:
            await _ended(ahead)
            raise
        shipment = await self._shipment_for(replica, published)
        try:
            receipt = await self._fleet.update_weights(replica, shipment)
        except (WeightUpdateError, RayTaskError) as error:
            await self._tell_dead_learner(error)
            logger.warning("%s could not use what it was sent and gets the whole weights: %s", replica.name, _line(error))
            replica.reads_files = replica.reads_files and shipment.paths is None
            shipment = await self._learner.whole_weights()
            receipt = await self._send_whole(replica, shipment)
        if (receipt.version, receipt.checksum) != (published.manifest.version, published.manifest.checksum):
            answer, sent = f"version {receipt.version} with checksum {receipt.checksum}", published.manifest
            self._fleet.lose(replica, f"it answers that it holds {answer}; {sent.version} with {sent.checksum} was sent")
            raise ReplicaLostError(f"{replica.name} holds other weights than were sent")
        replica.checksum = receipt.checksum
        return receipt, shipment.nbytes

    async def _send_whole(self, replica: Replica, shipment: Shipment) -> WeightReceipt:
        try:
            return await self._fleet.update_weights(replica, shipment)
        except (WeightUpdateError, RayTaskError) as error:
            await self._tell_dead_learner(error)
            self._fleet.lose(replica, f"it refuses whole weights: {_line(error)}")
            raise ReplicaLostError(f"{replica.name} refuses whole weights") from error

    async def _tell_dead_learner(self, error: Exception) -> None:
        """When what was sent got lost, see whether the learner lives; its death is what must be told then."""
        if isinstance(error, SenderLostError):
            await self._learner.health()

    async def _shipment_for(self, replica: Replica, published: Shipment) -> Shipment:
        if self._reads_files(replica):
            return Shipment(manifest=published.manifest, paths=published.paths)
        if published.base is not None and replica.checksum == published.base:
            return dataclasses.replace(published, paths=None)
        return await self._learner.whole_weights()

    def _reads_files(self, replica: Replica) -> bool:
        return replica.reads_files and replica.node == self._learner_node


class NcclTransport:
    """vLLM's own broadcast from learner rank 0 to all engine workers; the group is made anew when the fleet has changed.

    Args:
        learner: rank 0 sends, the other ranks take part in the gather.
        fleet: receives.
        probe: scored at both ends after each sync; None: nothing is scored.
        workers_per_actor: GPUs of an engine.
    """

    def __init__(self, learner: LearnerGroup, fleet: RolloutFleet, probe: EngineProbe | None, *, workers_per_actor: int) -> None:
        self._learner = learner
        self._fleet = fleet
        self._probe = probe
        self._workers_per_actor = workers_per_actor
        self._connected: list[str] = []
        self._joining: list[tuple[Replica, asyncio.Future[None]]] = []
        self._version = 0  # in service
        self._lock = asyncio.Lock()  # one broadcast at a time

    async def deliver(self, version: int) -> SyncReport:
        """See WeightTransport.deliver; without anybody to receive it, the version waits for the first who joins."""
        async with self._lock:
            self._version = version
            return await self._bring()

    async def _bring(self) -> SyncReport:
        """Bring the version to everybody; a broadcast that loses a receiver is sent again without it, over a new group."""
        joining, self._joining = self._joining, []
        begin = time.monotonic()
        try:
            while not await self._broadcast([replica for replica, _ in joining if replica.lost is None]):
                pass
        except LearnerGroupError:  # the group that is built in its place has met nobody yet
            self._connected, self._joining = [], [*joining, *self._joining]
            raise
        paused_s = time.monotonic() - begin
        for replica, joined in joining:
            if joined.done():  # it has been called off meanwhile
                continue
            if replica.lost is None:
                self._fleet.enlist(replica)
                joined.set_result(None)
            else:
                joined.set_exception(ReplicaLostError(f"{replica.name} did not take the weights: {replica.lost}"))
        self._fleet.must_have_replicas()
        if not self._fleet.replicas:
            return SyncReport(paused_s=0.0, sent_bytes=0, num_replicas=0)
        expected = await self._probe.expected(self._learner) if self._probe is not None else None
        mismatch = await _mismatch(self._fleet, self._probe, expected)
        return SyncReport(paused_s=paused_s, sent_bytes=0, num_replicas=len(self._fleet.replicas), mismatch=mismatch)

    async def _broadcast(self, joining: list[Replica]) -> bool:
        """Send once; whether everybody who is left holds the version. Whoever failed is out of service, alone."""
        replicas = {replica.name: replica for replica in [*self._fleet.replicas, *joining]}
        if not replicas:
            return True
        if list(replicas) != self._connected:
            self._connected = []
            actors = {name: replica.actor for name, replica in replicas.items()}
            failures = await self._learner.connect_broadcast(actors, workers_per_actor=self._workers_per_actor)
            if failures:
                self._lose(replicas, failures)
                return False
            self._connected = list(replicas)
        outcome = await self._learner.broadcast(self._version)
        if outcome.failures:
            self._connected = []
            self._lose(replicas, outcome.failures)
        for replica in replicas.values():
            replica.checksum = outcome.checksum if outcome.delivered else None
        return outcome.delivered

    def _lose(self, replicas: Mapping[str, Replica], failures: Mapping[str, str]) -> None:
        for name, reason in failures.items():
            self._fleet.lose(replicas[name], f"it took no part in a broadcast: {reason}")

    async def join(self, slot: int | None = None, *, placed: Callable[[Replica], Awaitable[None]] | None = None) -> Replica:
        """See WeightTransport.join; a broadcast needs the learner, so the replica takes part in the next one.

        While nobody samples there is none: no step comes without groups, and the learner waits for one. It broadcasts at once then.
        """
        replica = await self._fleet.add(slot, placed=placed)
        joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joining.append((replica, joined))
        try:
            if not self._fleet.replicas:
                async with self._lock:
                    if not joined.done():
                        await self._bring()
            await joined
        except BaseException as error:
            self._joining = [(other, future) for other, future in self._joining if other is not replica]
            self._fleet.abandon(replica, f"it could not be brought the version in service: {_line(error)}")
            raise
        return replica


def make_transport(config: Config, learner: LearnerGroup, fleet: RolloutFleet, probe: EngineProbe | None = None) -> WeightTransport:
    """Choose the transport of a run.

    Args:
        config: whose device decides.
        learner: one end.
        fleet: the other end.
        probe: scored at both ends after each sync; None: nothing is scored.

    Returns:
        NCCL between GPUs, files and parts otherwise.
    """
    if config.cluster.device is Device.gpu:
        return NcclTransport(learner, fleet, probe, workers_per_actor=config.rollout.tensor_parallel_size)
    return StagedTransport(learner, fleet, probe)


async def _mismatch(fleet: RolloutFleet, probe: EngineProbe | None, expected: NDArray[np.float32] | None) -> float:
    """The largest mismatch over the replicas, all scored at once; nan when nothing is scored."""
    if probe is None or expected is None:
        return math.nan
    found: Sequence[float] = await asyncio.gather(*(probe.mismatch(fleet, replica, expected) for replica in list(fleet.replicas)))
    fleet.must_have_replicas()
    return max((value for value in found if not math.isnan(value)), default=math.nan)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Leave none of them behind, whatever they have come to."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _line(error: BaseException) -> str:
    return (str(getattr(error, "cause", None) or error).strip().splitlines() or [repr(error)])[0]

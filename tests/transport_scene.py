"""A learner without weights and rollout actors without engines, for tests of what a transport does with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from actors.intake import WeightReceipt
from cluster.deaths import Whereabouts
from cluster.fleet import RolloutFleet
from cluster.probe import EngineProbe
from cluster.replica import Replica
from cluster.transport import StagedTransport
from conf.schema import Config, WeightsConfig
from learner.group import LearnerGroupError
from tests.fakes import FakePrompts, make_trajectory
from weights.manifest import BucketManifest, EarlyPart, Part, Shipment, WeightManifest, WeightUpdateError

BUCKETS = 3  # whose changes are published one after the other


def manifest(version: int) -> WeightManifest:
    bucket = BucketManifest(names=("a",), dtypes=("float32",), shapes=((25,),), nbytes=164, checksum=f"{version:016x}")
    return WeightManifest(version=version, buckets=(bucket,), num_parameters=1)


class Method:
    """An actor's method."""

    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.remote = call


class FakeActor:
    """Takes shipments; a test gives it a way to fail."""

    def __init__(self) -> None:
        self.shipments: list[Shipment] = []
        self.failures: list[BaseException] = []
        self.answered_checksum: str | None = None
        self.stalls = False
        self.expected: list[tuple[tuple[str, ...], int]] = []
        self.blind = False  # can't read ahead
        self.expect_weights = Method(self._expect_weights)
        self.logprobs = [-1.0, -2.0, -3.0]
        self.update_weights = Method(self._update_weights)
        self.take_early = Method(self._take_early)
        self.early: list[int] = []  # buckets
        self.early_failures: list[BaseException] = []
        self.stalls_early = False
        self.score = Method(self._score)
        self.rollout = Method(self._stall)

    async def _expect_weights(self, paths: tuple[str, ...], version: int) -> None:
        self.expected.append((paths, version))
        if self.stalls:
            await asyncio.sleep(3600)
        if self.blind:
            raise WeightUpdateError(f"version {version} can't be read ahead: no such file")

    async def _take_early(self, early: EarlyPart) -> None:
        self.early.append(early.index)
        if self.stalls_early:
            await asyncio.sleep(3600)
        if self.early_failures:
            raise self.early_failures.pop(0)

    async def _update_weights(self, shipment: Shipment) -> WeightReceipt:
        self.shipments.append(shipment)
        if self.stalls:
            await asyncio.sleep(3600)
        if self.failures:
            raise self.failures.pop(0)
        checksum = self.answered_checksum or shipment.manifest.checksum
        return WeightReceipt(version=shipment.manifest.version, checksum=checksum, stage_s=0, verify_s=0, paused_s=0.25)

    async def _score(self, *_: Any) -> list[float]:
        return self.logprobs

    async def _stall(self, *_: Any) -> None:
        await asyncio.sleep(3600)


class FakeReplica(Replica):
    """Without Ray."""

    def kill(self) -> None:
        """No process to end."""


class FakeFleet(RolloutFleet):
    """Its replicas are made by the test."""

    joining: FakeReplica

    async def add(self, *_: Any, **__: Any) -> Replica:
        """The replica that the test has made."""
        return self.joining


class FakeLearner:
    """Publishes versions without weights."""

    def __init__(self) -> None:
        self.published: list[WeightManifest] = []
        self.compared: list[bool] = []
        self.dies_after: int | None = None  # buckets
        self.arrived: list[list[int]] = []  # which buckets the first actor has been sent before each is compared
        self.dead = False
        self.actors: list[FakeActor] = []
        self.watched: list[list[list[tuple[tuple[str, ...], int]]]] = []  # what each actor expected by the end of each writing

    async def publish(self, version: int, *, compare: bool, early: Callable[[EarlyPart], None]) -> Shipment:
        await asyncio.sleep(0.01)  # writing
        self.watched.append([list(actor.expected) for actor in self.actors])
        before = self.published[-1].checksum if self.published and compare else None
        self.compared.append(compare)
        for index in range(BUCKETS if before else 0):
            self.arrived.append(list(self.actors[0].early))
            if index == self.dies_after:
                raise LearnerGroupError(f"learner rank 0 failed to publish version {version}")
            early(EarlyPart(version=version, base=str(before), index=index, part=Part.changes, payload=b"x"))
            await asyncio.sleep(0.01)  # comparing the next
        self.published.append(manifest(version))
        parts = (Part.changes,) * BUCKETS if before else ()
        return Shipment(
            manifest=manifest(version), paths=("/shm/0",), base=before, parts=parts, payloads=(b"x",) * len(parts), nbytes=len(parts)
        )

    async def whole_weights(self) -> Shipment:
        return Shipment(manifest=self.published[-1], parts=(Part.whole,), payloads=(b"w",), nbytes=164)

    async def health(self) -> list[dict[str, Any]]:
        if self.dead:
            raise LearnerGroupError("learner rank 0 failed to say how it is")
        return [{"node": "here"}]

    async def score(self, *_: Any, **__: Any) -> list[np.ndarray]:
        return [np.array([-1.0, -2.0, -3.0], dtype=np.float32)]


class Scene:
    """A learner on node "here" and replicas on the nodes that a test names."""

    def __init__(self, *nodes: str, probe: bool = False) -> None:
        self.learner = FakeLearner()
        self.actors = self.learner.actors = [FakeActor() for _ in nodes]
        self.fleet = FakeFleet(Config(weights=WeightsConfig(timeout_s=0.2)), "model", None)
        self.replicas = [self.replica(index, actor, node) for index, (actor, node) in enumerate(zip(self.actors, nodes, strict=True))]
        self.fleet.replicas = list(self.replicas)
        prompt = FakePrompts(1)[0]
        made = EngineProbe(prompt, make_trajectory(), limit=1e-3) if probe else None
        self.transport = StagedTransport(self.learner, self.fleet, made)  # type: ignore[arg-type]

    @staticmethod
    def replica(index: int, actor: FakeActor, node: str) -> FakeReplica:
        place = Whereabouts(node_id=node, address=node, pid=index, worker_id="")
        return FakeReplica(index=index, actor=actor, placement=None, slot=index, place=place)  # type: ignore[arg-type]

    def ways(self, actor: int = 0) -> list[str]:
        return ["files" if shipment.paths else "changes" if shipment.base else "whole" for shipment in self.actors[actor].shipments]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))

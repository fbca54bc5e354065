"""The order of events of a broadcast: who is lost, what is sent again to whom, over which group."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest

from cluster.fleet import NoReplicaError, RolloutFleet
from cluster.replica import Replica, ReplicaLostError
from cluster.transport import NcclTransport
from conf.schema import Config
from learner.group import LearnerGroupError
from weights.manifest import BroadcastOutcome


class FakeReplica(Replica):
    """Without Ray."""

    def kill(self) -> None:
        """No process to end."""


class FakeFleet(RolloutFleet):
    """Its replicas are made by the test."""

    joining: FakeReplica

    async def add(self, slot: int | None = None, *, placed: Any = None) -> Replica:
        """The replica that the test has made."""
        return self.joining


class FakeLearner:
    """Notes what is asked of it, and fails as a test says, once each."""

    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.dying = False
        self.not_connecting: list[dict[str, str]] = []
        self.outcomes: list[tuple[dict[str, str], bool]] = []

    async def connect_broadcast(self, actors: Mapping[str, Any], *, workers_per_actor: int) -> dict[str, str]:
        self.events.append(("connect", *actors))
        return self.not_connecting.pop(0) if self.not_connecting else {}

    async def broadcast(self, version: int) -> BroadcastOutcome:
        failures, delivered = self.outcomes.pop(0) if self.outcomes else ({}, True)
        self.events.append(("broadcast", version))
        if self.dying:
            self.dying = False
            raise LearnerGroupError(f"learner rank 0 failed to broadcast version {version}")
        return BroadcastOutcome(checksum=f"{version:016x}", failures=failures, delivered=delivered)


class Scene:
    """A learner and three replicas."""

    def __init__(self, count: int = 3) -> None:
        self.learner = FakeLearner()
        self.fleet = FakeFleet(Config(), "model", None)
        self.fleet.replicas = [self.replica(index) for index in range(count)]
        self.transport = NcclTransport(self.learner, self.fleet, None, workers_per_actor=1)  # type: ignore[arg-type]

    @staticmethod
    def replica(index: int) -> FakeReplica:
        return FakeReplica(index=index, actor=f"handle {index}", placement=None, slot=index)  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        return [replica.name for replica in self.fleet.replicas]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


ZERO, ONE, TWO = "rollout actor 0", "rollout actor 1", "rollout actor 2"


def test_the_group_is_made_once_and_kept() -> None:
    scene = Scene()

    async def work() -> None:
        for version in (1, 2):
            assert (await scene.transport.deliver(version)).num_replicas == 3

    run(work())
    assert scene.learner.events == [("connect", ZERO, ONE, TWO), ("broadcast", 1), ("broadcast", 2)]


def test_a_receiver_that_dies_in_mid_broadcast_is_lost_and_the_others_get_the_version_over_a_new_group() -> None:
    scene = Scene()
    scene.learner.outcomes = [({ONE: "The actor died unexpectedly"}, False)]
    report = run(scene.transport.deliver(1))
    assert report.num_replicas == 2 and scene.names == [ZERO, TWO]
    assert scene.learner.events == [("connect", ZERO, ONE, TWO), ("broadcast", 1), ("connect", ZERO, TWO), ("broadcast", 1)]
    assert scene.fleet.lost[0].lost == "it took no part in a broadcast: The actor died unexpectedly"
    assert {replica.checksum for replica in scene.fleet.replicas} == {f"{1:016x}"}


def test_one_that_received_and_answers_another_checksum_is_lost_and_nothing_is_sent_again() -> None:
    scene = Scene()
    scene.learner.outcomes = [({TWO: "it answers 0123456789abcdef for the checksum of its weights"}, True)]

    async def work() -> None:
        await scene.transport.deliver(1)
        await scene.transport.deliver(2)

    run(work())
    assert scene.names == [ZERO, ONE]
    connected = [("connect", ZERO, ONE, TWO), ("broadcast", 1), ("connect", ZERO, ONE), ("broadcast", 2)]
    assert scene.learner.events == connected


def test_one_that_does_not_connect_is_lost_before_anything_is_sent() -> None:
    scene = Scene()
    scene.learner.not_connecting = [{ZERO: "no answer within 120 s"}]
    run(scene.transport.deliver(1))
    assert scene.names == [ONE, TWO]
    assert scene.learner.events == [("connect", ZERO, ONE, TWO), ("connect", ONE, TWO), ("broadcast", 1)]


def test_when_all_are_lost_the_run_ends_with_every_reason() -> None:
    scene = Scene(2)
    scene.learner.outcomes = [({ZERO: "it died"}, False), ({ONE: "it stalled"}, False)]
    with pytest.raises(NoReplicaError, match=f"{ZERO}: .*it died; {ONE}: .*it stalled"):
        run(scene.transport.deliver(1))


@pytest.mark.parametrize("fails", [False, True])
def test_a_newcomer_takes_part_in_the_next_broadcast_before_it_is_in_service(fails: bool) -> None:
    scene = Scene(1)
    scene.fleet.joining = scene.replica(1)

    async def work() -> None:
        await scene.transport.deliver(1)
        joining = asyncio.create_task(scene.transport.join())
        await asyncio.sleep(0)
        assert scene.names == [ZERO]
        if fails:
            scene.learner.outcomes = [({ONE: "it died"}, False)]
        await scene.transport.deliver(2)
        if fails:
            with pytest.raises(ReplicaLostError, match="it died"):
                await joining
        else:
            assert (await joining).name == ONE

    run(work())
    assert scene.names == ([ZERO] if fails else [ZERO, ONE])
    again = [("connect", ZERO), ("broadcast", 2)] if fails else []
    assert scene.learner.events == [("connect", ZERO), ("broadcast", 1), ("connect", ZERO, ONE), ("broadcast", 2), *again]


def test_a_learner_group_that_is_built_again_meets_the_engines_again() -> None:
    scene = Scene(1)

    async def work() -> None:
        await scene.transport.deliver(1)
        scene.fleet.joining = late = scene.replica(1)
        joining = asyncio.ensure_future(scene.transport.join())
        await asyncio.sleep(0.01)
        scene.learner.dying = True
        with pytest.raises(LearnerGroupError):
            await scene.transport.deliver(2)
        assert (await scene.transport.deliver(2)).num_replicas == 2 and await joining is late

    run(work())
    again = [("connect", ZERO, ONE), ("broadcast", 2)]
    assert scene.learner.events == [("connect", ZERO), ("broadcast", 1), *again, *again]


def test_a_fleet_can_become_empty_and_be_joined_without_a_step() -> None:
    scene = Scene(1)
    scene.fleet.supervised = True
    late = scene.replica(1)

    async def work() -> None:
        assert (await scene.transport.deliver(1)).num_replicas == 1
        scene.fleet.lose(scene.fleet.replicas[0], "killed")
        assert (await scene.transport.deliver(2)).num_replicas == 0
        scene.fleet.joining = late
        assert await scene.transport.join() is late
        assert scene.fleet.replicas == [late]
        scene.fleet.joining = scene.replica(2)
        joining = asyncio.ensure_future(scene.transport.join())
        await asyncio.sleep(0.01)
        assert not joining.done()  # others sample: it waits for their next version
        assert (await scene.transport.deliver(3)).num_replicas == 2
        await joining

    run(work())
    sent = [("connect", ZERO), ("broadcast", 1), ("connect", ONE), ("broadcast", 2), ("connect", ONE, TWO), ("broadcast", 3)]
    assert scene.learner.events == sent

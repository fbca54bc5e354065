"""Each replica's weights go the way that it can take, and a failure costs the replica that failed, or is the learner's."""

from __future__ import annotations

import asyncio
import logging

import pytest

from actors.engine import EngineError
from actors.intake import WeightReceipt
from actors.worker import RolloutRequest
from cluster.fleet import NoReplicaError
from cluster.replica import ReplicaLostError
from learner.group import LearnerGroupError
from tests.fakes import FakePrompts
from tests.transport_scene import BUCKETS, FakeActor, Method, Scene, manifest, run
from weights.manifest import BaseMismatchError, SenderLostError, Shipment, WeightUpdateError


def test_a_replica_beside_the_learner_reads_its_files_and_nothing_is_compared() -> None:
    scene = Scene("here", "here")
    reports = [run(scene.transport.deliver(1))]
    assert scene.ways(0) == scene.ways(1) == ["files"]
    assert scene.learner.compared == [False]
    assert reports[0].metrics() == {"time/weight_sync_paused_s": 0.25, "weights/sent_bytes": 0.0, "rollout/actors": 2.0}


def test_replicas_beside_the_learner_read_a_version_while_it_is_written_from_the_second_one_on() -> None:
    scene = Scene("here", "there")

    async def work() -> None:
        for version in (1, 2, 3):
            await scene.transport.deliver(version)

    run(work())
    two, three = (("/shm/0",), 2), (("/shm/0",), 3)
    assert scene.learner.watched == [[[], []], [[two], []], [[two, three], []]]


def test_one_that_can_t_read_ahead_takes_the_version_when_it_is_whole() -> None:
    scene = Scene("here")
    scene.actors[0].blind = True

    async def work() -> None:
        for version in (1, 2):
            await scene.transport.deliver(version)

    run(work())
    assert scene.ways() == ["files", "files"] and scene.fleet.replicas == scene.replicas


def test_one_that_stalls_while_it_reads_ahead_costs_the_deadline_once() -> None:
    scene = Scene("here", "here")

    async def work() -> None:
        await scene.transport.deliver(1)
        scene.actors[1].stalls = True
        begin = asyncio.get_running_loop().time()
        assert (await scene.transport.deliver(2)).num_replicas == 1
        assert asyncio.get_running_loop().time() - begin < 2

    run(work())
    assert "waited 0.2 s for rollout actor 1 to read version 2 ahead" in str(scene.replicas[1].lost)


def test_a_replica_elsewhere_gets_everything_once_and_then_changes() -> None:
    scene = Scene("here", "there")

    async def work() -> None:
        assert (await scene.transport.deliver(1)).sent_bytes == 164
        assert (await scene.transport.deliver(2)).sent_bytes == BUCKETS
        assert (await scene.transport.deliver(3)).sent_bytes == BUCKETS

    run(work())
    assert scene.ways(0) == ["files"] * 3
    assert scene.ways(1) == ["whole", "changes", "changes"]


@pytest.mark.parametrize("failure", [BaseMismatchError("other base"), WeightUpdateError("the checksum is wrong")])
def test_refused_changes_are_followed_by_everything(failure: Exception) -> None:
    scene = Scene("there")

    async def work() -> None:
        await scene.transport.deliver(1)
        scene.actors[0].failures = [failure]
        await scene.transport.deliver(2)
        await scene.transport.deliver(3)

    run(work())
    assert scene.ways() == ["whole", "changes", "whole", "changes"]
    assert scene.fleet.replicas == scene.replicas


def test_files_that_cannot_be_read_are_not_tried_again() -> None:
    scene = Scene("here")
    scene.actors[0].failures = [WeightUpdateError("cannot read /shm/0")]

    async def work() -> None:
        for version in (1, 2, 3):
            await scene.transport.deliver(version)

    run(work())
    assert scene.ways() == ["files", "whole", "changes", "changes"]


def test_a_replica_that_refuses_whole_weights_is_out_of_service(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene("here", "here")
    scene.actors[1].failures = [WeightUpdateError("no"), WeightUpdateError("no again")]
    report = run(scene.transport.deliver(1))
    assert report.num_replicas == 1 and scene.fleet.replicas == scene.replicas[:1]
    assert "rollout actor 1 is out of service: it refuses whole weights: no again" in caplog.text


def test_a_replica_that_answers_another_checksum_is_out_of_service(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene("here", "here")
    scene.actors[0].answered_checksum = "0123456789abcdef"
    run(scene.transport.deliver(1))
    assert scene.fleet.replicas == scene.replicas[1:]
    told = "rollout actor 0 is out of service: it answers that it holds version 1 with checksum 0123456789abcdef; 1 with "
    told += f"{manifest(1).checksum} was sent"
    assert told in caplog.text
    run(scene.transport.deliver(2))
    assert len(scene.actors[0].shipments) == 1, "nothing is sent to it any more"


def test_a_stalled_replica_costs_the_deadline_once_and_its_running_prompts_are_told() -> None:
    scene = Scene("here", "here")
    scene.actors[0].stalls = True

    async def work() -> None:
        rolling = asyncio.create_task(scene.fleet.rollout([RolloutRequest(group_id="g", turn=0, prompt=FakePrompts(1)[0], seed=1)]))
        await asyncio.sleep(0)
        begin = asyncio.get_running_loop().time()
        report = await scene.transport.deliver(1)
        assert 0.2 <= asyncio.get_running_loop().time() - begin < 2
        assert report.num_replicas == 1
        with pytest.raises(
            ReplicaLostError, match=r"rollout actor 0 is out of service: waited 0.2 s for rollout actor 0 to take version 1"
        ):
            await rolling

    run(work())


def test_an_engine_that_died_costs_its_replica() -> None:
    scene = Scene("here", "here")
    scene.actors[1].failures = [EngineError("the engine of rollout replica 1 died")]
    assert run(scene.transport.deliver(1)).num_replicas == 1
    assert scene.replicas[1].lost == "the engine of rollout replica 1 died"


def test_without_a_replica_the_run_ends_and_says_why_each_is_gone() -> None:
    scene = Scene("here", "there")
    scene.actors[0].failures = [EngineError("died")]
    scene.actors[1].answered_checksum = "0"
    with pytest.raises(NoReplicaError, match=r"no rollout actor is left in service \(.*rollout actor 0: died"):
        run(scene.transport.deliver(1))


def test_a_dead_learner_is_told_as_such_and_costs_no_replica() -> None:
    scene = Scene("there")
    scene.actors[0].failures = [SenderLostError("version 1 did not reach it")]
    scene.learner.dead = False

    async def work() -> None:
        await scene.transport.deliver(1)  # a learner that lives sends again
        assert scene.ways() == ["whole", "whole"]
        scene.actors[0].failures = [SenderLostError("version 2 did not reach it")]
        scene.learner.dead = True
        with pytest.raises(LearnerGroupError, match="rank 0"):
            await scene.transport.deliver(2)

    run(work())
    assert scene.fleet.replicas == scene.replicas


@pytest.mark.parametrize("node", ["here", "there"])
def test_a_replica_that_joins_has_the_current_version_before_it_is_in_service(node: str) -> None:
    scene = Scene("here")
    newcomer = FakeActor()
    scene.fleet.joining = scene.replica(1, newcomer, node)

    async def work() -> None:
        await scene.transport.deliver(5)
        newcomer_in_service = []
        update = newcomer._update_weights

        async def watched(shipment: Shipment) -> WeightReceipt:
            newcomer_in_service.append(len(scene.fleet.replicas) == 2)
            return await update(shipment)

        newcomer.update_weights = Method(watched)
        joined = await scene.transport.join()
        assert newcomer_in_service == [False]
        assert joined.checksum == manifest(5).checksum and scene.fleet.replicas[-1] is joined
        await scene.transport.deliver(6)

    run(work())
    assert [shipment.manifest.version for shipment in newcomer.shipments] == [5, 6]
    assert [shipment.base is not None for shipment in newcomer.shipments] == [False, node == "there"]


def test_a_newcomer_that_does_not_take_the_weights_is_not_enlisted() -> None:
    scene = Scene("here")
    newcomer = FakeActor()
    newcomer.stalls = True
    scene.fleet.joining = scene.replica(1, newcomer, "here")

    async def work() -> None:
        await scene.transport.deliver(1)
        with pytest.raises(ReplicaLostError, match="rollout actor 1"):
            await scene.transport.join()

    run(work())
    assert scene.fleet.replicas == scene.replicas


def test_the_probe_measures_the_worst_engine_and_warns_past_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene("here", "here", probe=True)
    scene.actors[0].logprobs = [-1.0, -2.0005, -3.0]
    with caplog.at_level(logging.WARNING):
        assert run(scene.transport.deliver(1)).metrics()["kl/engine_mismatch"] == pytest.approx(0.0005, abs=1e-6)
        assert not caplog.records
        scene.actors[1].logprobs = [-1.0, -2.0, -3.25]
        assert run(scene.transport.deliver(2)).mismatch == pytest.approx(0.25)
    assert "rollout actor 1 scores the probe 0.25 nats away from the learner on the same weights, more than 0.001" in caplog.text

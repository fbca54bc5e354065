"""A bucket's changes are on their way while the next bucket is compared, and whatever goes wrong then costs time and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from learner.group import LearnerGroupError
from tests.transport_scene import Scene, run
from weights.manifest import SenderLostError, WeightUpdateError


def test_a_bucket_is_on_its_way_before_the_next_one_is_compared() -> None:
    scene = Scene("there", "here")

    async def work() -> None:
        for version in (1, 2):
            await scene.transport.deliver(version)

    run(work())
    assert scene.learner.arrived == [[], [0], [0, 1]]
    assert scene.actors[0].early == [0, 1, 2] and scene.actors[1].early == []
    assert scene.ways() == ["whole", "changes"]


def test_one_that_holds_something_else_gets_no_early_parts() -> None:
    scene = Scene("there", "there")

    async def work() -> None:
        await scene.transport.deliver(1)
        scene.replicas[1].checksum = "other"
        await scene.transport.deliver(2)

    run(work())
    assert scene.actors[0].early == [0, 1, 2] and scene.actors[1].early == []
    assert scene.ways(1) == ["whole", "whole"]


@pytest.mark.parametrize("failure", [SenderLostError("did not reach it"), WeightUpdateError("3 bytes were sent, 2 arrived")])
def test_a_refusal_in_the_middle_leaves_the_rest_to_the_shipment(failure: Exception) -> None:
    scene = Scene("there")

    async def work() -> None:
        await scene.transport.deliver(1)
        scene.actors[0].early_failures = [failure]
        await scene.transport.deliver(2)

    run(work())
    assert scene.ways() == ["whole", "changes"] and scene.fleet.replicas == scene.replicas


def test_one_that_stalls_between_two_buckets_costs_the_deadline_once() -> None:
    scene = Scene("there", "there")

    async def work() -> None:
        before = asyncio.all_tasks()
        await scene.transport.deliver(1)
        scene.actors[1].stalls_early = True
        begin = asyncio.get_running_loop().time()
        assert (await scene.transport.deliver(2)).num_replicas == 1
        assert 0.2 <= asyncio.get_running_loop().time() - begin < 2
        assert asyncio.all_tasks() == before

    run(work())
    assert "waited 0.2 s for rollout actor 1 to take bucket 0 of version 2" in str(scene.replicas[1].lost)
    assert scene.ways(1) == ["whole"]


def test_a_learner_that_dies_between_two_buckets_costs_no_replica_and_leaves_no_task() -> None:
    scene = Scene("there", "there")

    async def work() -> None:
        before = asyncio.all_tasks()
        await scene.transport.deliver(1)
        scene.learner.dies_after = 2
        scene.actors[1].stalls_early = True
        with pytest.raises(LearnerGroupError, match="rank 0 failed to publish version 2"):
            await scene.transport.deliver(2)
        assert asyncio.all_tasks() == before

    run(work())
    assert scene.actors[0].early == [0, 1] and scene.ways(0) == scene.ways(1) == ["whole"]
    assert scene.fleet.replicas == scene.replicas

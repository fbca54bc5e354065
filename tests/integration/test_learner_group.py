"""The learner group on a real Ray cluster: two ranks that act as one, and one error that names who failed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from safetensors.torch import load
from transformers import AutoModelForImageTextToText

from algorithms.schema import to_record_batch
from learner.group import LearnerGroup, LearnerGroupError
from tests.tiny_learner import as_samples, make_config, make_trajectories, noise_image, sample_table
from weights.buckets import verify_bucket
from weights.manifest import EarlyPart, Part


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=128 * 2**20, namespace="test_learner_group", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def config():
    config = make_config(learner={"num_ranks": 2, "zero_stage": 2, "timeout_s": 60.0, "start_timeout_s": 180.0})
    return dataclasses.replace(config, weights=dataclasses.replace(config.weights, bucket_bytes=4 * 2**20))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 300))


def test_two_ranks_act_as_one(tiny_model: Path, config, tmp_path: Path) -> None:
    pictured = make_trajectories(tiny_model, (noise_image(tmp_path, 1),), number=1, samples=4)
    text = make_trajectories(tiny_model, (), number=2)

    async def work() -> None:
        group = LearnerGroup(config, str(tiny_model))
        try:
            await group.start()
            assert [(rank["rank"], rank["state"]) for rank in await group.health()] == [(0, "ready"), (1, "ready")]
            shards = [ray.put(sample_table(as_samples(part))) for part in (pictured, text)]
            metrics = await group.update(shards, step=0)
            assert metrics["tokens/trained"] == sum(int(t.loss_mask.sum()) for t in [*pictured, *text])
            assert metrics["update/skipped"] == 0

            shipment = await group.publish(1)
            whole = await group.whole_weights()
            assert whole.manifest == shipment.manifest and shipment.paths is not None
            payloads = await asyncio.gather(*whole.payloads)
            for bucket, payload, path in zip(shipment.manifest.buckets, payloads, shipment.paths, strict=True):
                verify_bucket(bucket, payload, where=path)
                assert Path(path).read_bytes() == payload.tobytes()
            assert len(payloads) > 1

            await group.save_checkpoint(str(tmp_path / "checkpoint"))
            trajectories = pa.Table.from_batches([to_record_batch([*pictured, *text])])
            before = await group.score(trajectories)
            loss = await group.supervised_update([to_table(pictured), to_table(text)], step=0)
            assert np.isfinite(loss)
            changed = await group.score(trajectories)

            early: list[EarlyPart] = []
            second = await group.publish(2, compare=True, early=early.append)
            assert second.base == shipment.manifest.checksum and second.manifest.checksum != second.base
            assert sorted(part.index for part in early) == list(range(len(second.parts)))
            whole_parts = [part for part in early if part.part is Part.whole]
            assert whole_parts, "an optimizer step in float32 changes nearly all"
            for part in whole_parts:
                verify_bucket(second.manifest.buckets[part.index], await part.payload, where=f"bucket {part.index}")

            await group.load_checkpoint(str(tmp_path / "checkpoint"))
            after = await group.score(trajectories)
            assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
            assert not np.array_equal(before[0], changed[0])

            await group.export_model(str(tmp_path / "model"))
            exported = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "model").named_parameters())
            published = {name: value for payload in payloads for name, value in load(payload.tobytes()).items()}
            assert published.keys() == {name for name in exported if name != "lm_head.weight"}
            assert all(value.equal(exported[name]) for name, value in published.items())

            with pytest.raises(ValueError, match="1 shards for 2 ranks"):
                await group.update(shards[:1], step=1)

            os.kill((await group.health())[1]["pid"], signal.SIGKILL)
            begin = time.monotonic()
            with pytest.raises(LearnerGroupError, match=r"learner rank 1 failed to take step 1: .*ActorDied"):
                await group.update(shards, step=1)
            assert time.monotonic() - begin < 30
            with pytest.raises(LearnerGroupError, match="isn't running"):
                await group.update(shards, step=2)
            assert not any(Path(path).exists() for path in shipment.paths), "files in shared memory must go with the group"
        finally:
            await group.close()

    run(work())


def to_table(trajectories) -> pa.Table:
    return pa.Table.from_batches([to_record_batch(trajectories)])


def test_a_rank_that_raises_is_named_with_its_reason(tiny_model: Path, config, tmp_path: Path) -> None:
    async def work() -> None:
        group = LearnerGroup(config, str(tmp_path / "nowhere"))
        with pytest.raises(LearnerGroupError, match=r"learner rank \d failed to load the policy and meet the other ranks: \w*Error\("):
            await group.start()
        with pytest.raises(LearnerGroupError, match="isn't running"):
            await group.health()

    run(work())


def test_a_group_without_room_says_what_it_asked_for(tiny_model: Path, config) -> None:
    config = dataclasses.replace(config, learner=dataclasses.replace(config.learner, num_ranks=3, start_timeout_s=2.0))

    async def work() -> None:
        message = r"no room for 3 learner ranks of {'CPU': 1.0} within 2 s; the cluster has .*'CPU': 2.0"
        with pytest.raises(LearnerGroupError, match=message):
            await LearnerGroup(config, str(tiny_model)).start()

    run(work())


def test_a_late_rank_is_named(tiny_model: Path, config) -> None:
    # importing torch alone takes longer
    config = dataclasses.replace(config, learner=dataclasses.replace(config.learner, start_timeout_s=1.5))

    async def work() -> None:
        group = LearnerGroup(config, str(tiny_model))
        with pytest.raises(LearnerGroupError, match=r"waited 1.5 s for learner rank [01](, 1)? to "):
            await group.start()
        with pytest.raises(LearnerGroupError, match="isn't running"):
            await group.publish(1)

    run(work())

"""A shipment that is lost on the way is told as the sender's loss, and a refused one makes the copy ask for everything."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.engine.updates import UpdateReceipt
from actors.intake import WeightIntake
from tests.tiny_weights import TensorSource, part_shipment, published, whole_shipment
from weights.manifest import BaseMismatchError, EarlyPart, SenderLostError, Shipment, WeightUpdateError
from weights.publisher import WeightPublisher
from weights.staging import StagedUpdate


class FakeEngine:
    """Takes every update, unless a test says otherwise."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.taken: list[StagedUpdate] = []
        self.expected: list[tuple[tuple[str, ...], int]] = []

    async def expect_weights(self, paths: tuple[str, ...], version: int, *, timeout_s: float) -> None:
        self.expected.append((paths, version))

    async def update_weights(self, update: StagedUpdate, version: int, *, timeout_s: float) -> UpdateReceipt:
        if self.refusal is not None:
            raise self.refusal
        self.taken.append(update)
        return UpdateReceipt(version=version, checksum=update.manifest.checksum, verify_s=0.0, paused_s=0.0, load_s=0.0)


async def arriving(payload: Any) -> Any:
    """What awaiting an object reference does."""
    if isinstance(payload, Exception):
        raise payload
    if isinstance(payload, str):
        await asyncio.sleep(3600)
    return payload


def on_the_way(shipment: Shipment, payloads: list[Any]) -> Shipment:
    references = tuple(None if payload is None else arriving(payload) for payload in payloads)
    return Shipment(manifest=shipment.manifest, base=shipment.base, parts=shipment.parts, payloads=references)


class Ends:
    """A sender and an intake."""

    def __init__(self, root: Path) -> None:
        self.source = TensorSource([("a", torch.zeros(50000)), ("b", torch.zeros(50000))])
        self.sender = WeightPublisher(self.source, bucket_bytes=200000, sends=True, root=str(root))
        published(self.sender, 1, compare=False)
        self.whole = whole_shipment(*self.sender.whole())
        self.engine = FakeEngine()
        self.intake = WeightIntake(self.engine, timeout_s=0.2, name="rollout replica 3")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [ray.exceptions.RaySystemError("the owner died"), "never"])
def test_a_lost_shipment_is_the_sender_s_loss_and_touches_nothing(loss: Any, tmp_path: Path) -> None:
    async def check() -> None:
        ends = Ends(tmp_path)
        with pytest.raises(SenderLostError, match="version 1 did not reach rollout replica 3: "):
            await ends.intake.take(on_the_way(ends.whole, [ends.whole.payloads[0], loss]))
        assert ends.engine.taken == []
        receipt = await ends.intake.take(on_the_way(ends.whole, list(ends.whole.payloads)))
        assert receipt.checksum == ends.whole.manifest.checksum
        ends.intake.close()

    asyncio.run(asyncio.wait_for(check(), 10))


def test_after_a_refusal_changes_are_not_trusted(tmp_path: Path) -> None:
    async def check() -> None:
        ends = Ends(tmp_path)
        await ends.intake.take(on_the_way(ends.whole, list(ends.whole.payloads)))
        ends.source.tensors["a"][7] = 1.0
        shipment = part_shipment(published(ends.sender, 2))
        ends.engine.refusal = WeightUpdateError("the checksum is wrong")
        with pytest.raises(WeightUpdateError, match="the checksum is wrong"):
            await ends.intake.take(on_the_way(shipment, list(shipment.payloads)))
        ends.engine.refusal = None
        assert ends.engine.expected == [(ends.engine.taken[0].paths, 2)], "the engine reads its copy while the changes are applied"
        with pytest.raises(BaseMismatchError):
            await ends.intake.take(on_the_way(shipment, list(shipment.payloads)))
        whole = whole_shipment(*ends.sender.whole())
        await ends.intake.take(on_the_way(whole, list(whole.payloads)))
        held = ends.engine.taken[-1]
        assert all(np.array_equal(np.fromfile(path, dtype=np.uint8), p) for path, p in zip(held.paths, whole.payloads, strict=True))
        ends.intake.close()
        assert not os.path.exists(held.paths[0])

    asyncio.run(asyncio.wait_for(check(), 10))


def test_files_of_this_node_are_used_where_they_are(tmp_path: Path) -> None:
    async def check() -> None:
        ends = Ends(tmp_path)
        await ends.intake.take(Shipment(manifest=ends.whole.manifest, paths=("/a", "/b")))
        assert ends.engine.taken[0].paths == ("/a", "/b")

    asyncio.run(asyncio.wait_for(check(), 10))


async def changed_once(ends: Ends) -> tuple[list[EarlyPart], Shipment]:
    """An intake that holds version 1, and the changes to version 2."""
    await ends.intake.take(on_the_way(ends.whole, list(ends.whole.payloads)))
    for tensor in ends.source.tensors.values():
        tensor[7] = 1.0
    *parts, shipment = ends.sender.publish(2, compare=True)
    assert isinstance(shipment, Shipment) and len(parts) == 2
    return [part for part in parts if isinstance(part, EarlyPart)], part_shipment(shipment)


def early_on_the_way(early: EarlyPart, payload: Any) -> EarlyPart:
    return dataclasses.replace(early, payload=arriving(payload))


@pytest.mark.parametrize("loss", [None, ray.exceptions.RaySystemError("the owner died"), "never"])
def test_what_came_early_is_not_fetched_again_and_what_was_lost_comes_with_the_rest(loss: Any, tmp_path: Path) -> None:
    async def check() -> None:
        ends = Ends(tmp_path)
        (first, second), shipment = await changed_once(ends)
        await ends.intake.take_early(early_on_the_way(first, first.payload))
        paths = ends.engine.taken[0].paths
        assert ends.engine.expected == [(paths, 2)], "the engine reads its copy from the first part on"
        if loss is None:
            await ends.intake.take_early(early_on_the_way(second, second.payload))
        else:
            with pytest.raises(SenderLostError, match="version 2 did not reach rollout replica 3: "):
                await ends.intake.take_early(early_on_the_way(second, loss))
        rest = [ValueError("fetched again"), second.payload if loss is not None else ValueError("fetched again")]
        coming = on_the_way(shipment, rest)
        receipt = await ends.intake.take(coming)
        for payload in coming.payloads:
            payload.close()  # what was never awaited
        assert receipt.checksum == shipment.manifest.checksum
        assert ends.engine.expected == [(paths, 2)]
        published_bytes = ends.sender.whole()[1]
        assert all(np.array_equal(np.fromfile(path, dtype=np.uint8), p) for path, p in zip(paths, published_bytes, strict=True))
        ends.intake.close()

    asyncio.run(asyncio.wait_for(check(), 10))


def test_early_parts_for_an_intake_without_a_copy_are_refused(tmp_path: Path) -> None:
    async def check() -> None:
        ends = Ends(tmp_path)
        (first, _), _ = await changed_once(ends)
        new = WeightIntake(ends.engine, timeout_s=0.2, name="rollout replica 4")  # type: ignore[arg-type]
        with pytest.raises(BaseMismatchError, match="rollout replica 4 has no copy"):
            await new.take_early(early_on_the_way(first, first.payload))
        ends.intake.close()

    asyncio.run(asyncio.wait_for(check(), 10))

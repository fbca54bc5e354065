"""How fast weights travel, against a plain memory copy in the same run, and how long an engine's generation is paused.

    python -m benchmarks.weights                            # transport alone, 500 MB of float32
    python -m benchmarks.weights --model .cache/coldstart/HASH --only pause

- full: a version out of the learner's memory to 1 and to 2 receivers on its node, every byte verified by each;
  against a copy of as many bytes
- changes: what 2 % changed numbers take through the object store, in bytes and in time, against a whole version through it
- pause: the parts of one sync of a real engine with the quickstart's model

A receiver here is a process of its own that does what a rollout actor and its engine do up to loading: it fetches, keeps its copy,
verifies every byte and answers its checksum. vLLM's loading comes after that, is the same for every way, and is told in `pause`.
Rounds are interleaved. Read the ratios; the absolute figures are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.engine import RolloutEngine
from benchmarks.report import Series, conditions, table
from conf.loading import load_config
from weights.manifest import EarlyPart, Part, Shipment
from weights.mirror import WeightMirror
from weights.publisher import WeightPublisher
from weights.source import DeepSpeedWeightSource, ParameterMetadata
from weights.staging import StagedUpdate, StagingArea
from weights.verifier import FileVerifier

ROOT = Path(__file__).parents[1]
MEGABYTE = 10**6
TENSOR_NUMBERS = 4096 * 1024  # of each tensor
BUCKET_BYTES = 64 * 2**20
CHANGED = 0.02


def main() -> None:
    """Run the chosen measurements and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", type=Path, help="cold-started quickstart model, for `pause`")
    parser.add_argument("--only", choices=("full", "changes", "pause"))
    arguments = parser.parse_args()
    print(conditions("python -m benchmarks.weights"))
    if arguments.only in (None, "full", "changes"):
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=3 * arguments.megabytes * MEGABYTE, log_to_driver=False)
        sender = ray.remote(Sender).remote(arguments.megabytes * MEGABYTE)
        receivers = [ray.remote(Receiver).remote() for _ in range(2)]
        if arguments.only in (None, "full"):
            print(full(sender, receivers, arguments.rounds), flush=True)
        if arguments.only in (None, "changes"):
            for dtype in ("float32", "bfloat16"):
                print(changes(sender, receivers[0], dtype, arguments.rounds), flush=True)
        ray.shutdown()
    if arguments.only in (None, "pause") and arguments.model:
        print(asyncio.run(pause(arguments.model, arguments.rounds)), flush=True)


class Tensors:
    """Random weights in this process's memory, in the shape of DeepSpeedWeightSource."""

    def __init__(self, nbytes: int, dtype: torch.dtype) -> None:
        count = nbytes // (TENSOR_NUMBERS * dtype.itemsize)
        self.tensors = {f"layer.{i}": torch.randn(TENSOR_NUMBERS).to(dtype) for i in range(count)}

    def metadata(self) -> list[ParameterMetadata]:
        """As DeepSpeedWeightSource."""
        return [ParameterMetadata(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Any:
        return iter(self.tensors.items())

    def trained(self) -> Any:
        """As DeepSpeedWeightSource."""
        return iter(self)

    def step(self, share: float, random: np.random.Generator) -> None:
        """Change a share of the numbers."""
        for tensor in self.tensors.values():
            if share == 1:
                tensor.neg_()
                continue
            chosen = torch.from_numpy(random.choice(TENSOR_NUMBERS, int(share * TENSOR_NUMBERS), replace=False))
            tensor[chosen] = torch.randn(len(chosen)).to(tensor.dtype)


class Sender:
    """What learner rank 0 does."""

    def __init__(self, nbytes: int) -> None:
        torch.set_num_threads(1)
        self._nbytes, self._random, self._version = nbytes, np.random.default_rng(0), 0
        self.reset("float32")

    def reset(self, dtype: str) -> int:
        """New weights; their bytes."""
        self._weights = Tensors(self._nbytes, getattr(torch, dtype))
        self._publisher = WeightPublisher(self._weights, bucket_bytes=BUCKET_BYTES, sends=True)
        return sum(tensor.nbytes for tensor in self._weights.tensors.values())

    def step(self, share: float) -> None:
        """An optimizer step that changes a share of the numbers."""
        self._weights.step(share, self._random)

    @ray.method(num_returns="streaming")
    def publish(self, compare: bool) -> Iterator[EarlyPart | Shipment]:
        """As LearnerRank.publish."""
        self._version += 1
        yield from self._publisher.publish(self._version, compare=compare, put=ray.put)

    def whole(self) -> Shipment:
        """As LearnerRank.whole_weights."""
        manifest, buckets = self._publisher.whole()
        payloads = tuple(ray.put(bucket) for bucket in buckets)
        return Shipment(manifest=manifest, parts=(Part.whole,) * len(buckets), payloads=payloads, nbytes=manifest.nbytes)

    def plain_copy(self) -> tuple[float, float]:
        """Seconds of copying the same bytes from memory to memory: to memory in use already, and to new memory."""
        tensors = [tensor.numpy() for tensor in self._weights.tensors.values()]
        targets = [np.ones_like(tensor) for tensor in tensors]
        begin = time.perf_counter()
        for target, tensor in zip(targets, tensors, strict=True):
            np.copyto(target, tensor)
        used = time.perf_counter()
        copies = [tensor.copy() for tensor in tensors]
        assert len(copies) == len(tensors)
        return used - begin, time.perf_counter() - used


class Receiver:
    """What a rollout actor and its engine do with weights before vLLM loads them."""

    def __init__(self) -> None:
        self._area = StagingArea()
        self._mirror = WeightMirror(self._area)
        self._verifier = FileVerifier()

    def expect(self, paths: tuple[str, ...], version: int) -> None:
        """As RolloutActor.expect_weights."""
        self._verifier.expect(paths, version, timeout_s=120)

    def take_early(self, early: EarlyPart) -> None:
        """As WeightIntake.take_early."""
        if not self._mirror.taken(early):
            self.expect(self._mirror.paths, early.version)
        self._mirror.take_early(early, None if early.payload is None else ray.get(early.payload))

    def take(self, shipment: Shipment) -> str:
        """Stage, verify every byte, answer the checksum."""
        if shipment.paths is not None:
            staged = StagedUpdate(paths=shipment.paths, manifest=shipment.manifest)
        else:
            taken = self._mirror.taken(shipment)
            wanted = [None if index in taken else payload for index, payload in enumerate(shipment.payloads)]
            if self._mirror.paths and not taken:
                self.expect(self._mirror.paths, shipment.manifest.version)
            staged = self._mirror.take(shipment, [None if payload is None else ray.get(payload) for payload in wanted])
        return self._verifier.verify(staged.paths, staged.manifest)


def published(sender: Any, *, compare: bool, early: Callable[[EarlyPart], None] = lambda part: None) -> Shipment:
    """As LearnerGroup.publish."""
    for reference in sender.publish.remote(compare):
        item = ray.get(reference)
        if isinstance(item, EarlyPart):
            early(item)
    return item


def sync(receivers: list[Any], make: Callable[[], Shipment], ahead: tuple[tuple[str, ...], int] | None = None) -> tuple[float, Shipment]:
    """Seconds from the decision to publish until every receiver has answered the right checksum.

    With the learner's files and the version that they are about to be, receivers read ahead, as StagedTransport has them do.
    """
    begin = time.perf_counter()
    expecting = [receiver.expect.remote(*ahead) for receiver in receivers] if ahead is not None else []
    shipment = make()
    ray.get(expecting, timeout=120)
    answers = ray.get([receiver.take.remote(shipment) for receiver in receivers], timeout=120)
    seconds = time.perf_counter() - begin
    assert set(answers) == {shipment.manifest.checksum}
    return seconds, shipment


def full(sender: Any, receivers: list[Any], rounds: int) -> str:
    """Whole versions through files on one node."""
    nbytes = ray.get(sender.reset.remote("float32"))

    def make() -> Shipment:
        return published(sender, compare=False)

    _, last = sync(receivers, make)  # makes the files

    def rate(chosen: list[Any]) -> float:
        """Bytes of all chosen receivers in a second."""
        nonlocal last
        ray.get(sender.step.remote(CHANGED))
        assert last.paths is not None
        seconds, last = sync(chosen, make, (last.paths, last.manifest.version + 1))
        return len(chosen) * nbytes / seconds / 1e9

    rate(receivers)  # maps them
    copies, fresh, one, two = [], [], [], []
    for _ in range(rounds):
        for rates, seconds in zip((copies, fresh), ray.get(sender.plain_copy.remote()), strict=True):
            rates.append(nbytes / seconds / 1e9)
        one.append(rate(receivers[:1]))
        two.append(rate(receivers))
    title = f"Full sync on one node, {nbytes / MEGABYTE:.0f} MB of float32, before vLLM loads"
    plain = Series("plain copy into memory in use", copies, "GB/s")
    rows = [Series("copy into new memory", fresh, "GB/s"), Series("1 receiver", one, "GB/s"), Series("2 receivers, together", two, "GB/s")]
    return table(title, rows[0], plain) + "".join(f"{row.row(plain)}\n" for row in rows[1:])


def changes(sender: Any, receiver: Any, dtype: str, rounds: int) -> str:
    """2 % changed numbers through the object store against whole versions through it."""
    nbytes = ray.get(sender.reset.remote(dtype))
    published(sender, compare=False)

    def whole() -> Shipment:
        published(sender, compare=False)
        return ray.get(sender.whole.remote())

    def parts() -> Shipment:
        sent: list[Any] = []
        shipment = published(sender, compare=True, early=lambda part: sent.append(receiver.take_early.remote(part)))
        ray.get(sent, timeout=120)
        return dataclasses.replace(shipment, paths=None)

    sync([receiver], whole)
    whole_s, parts_s, all_s, share = [], [], [], []
    for _ in range(rounds):
        ray.get(sender.step.remote(1.0))
        all_s.append(1000 * sync([receiver], parts)[0])
        ray.get(sender.step.remote(CHANGED))
        whole_s.append(1000 * sync([receiver], whole)[0])
        ray.get(sender.step.remote(CHANGED))
        seconds, shipment = sync([receiver], parts)
        parts_s.append(1000 * seconds)
        share.append(shipment.nbytes / nbytes)
    title = f"{CHANGED:.0%} changed numbers of {nbytes / MEGABYTE:.0f} MB {dtype}, through the object store"
    whole_series = Series("whole", whole_s, "ms")
    rows = table(title, Series("changes", parts_s, "ms"), whole_series)
    rows += Series("everything changed, bucket by bucket", all_s, "ms").row(whole_series) + "\n"
    return rows + f"\nBytes sent: {max(share):.2%} of a whole version's; the receiver's copy is bit-identical (checksum of every byte).\n"


async def pause(model: Path, rounds: int) -> str:
    """One engine with the quickstart's model: where the time of a sync goes."""
    from transformers import AutoModelForImageTextToText

    config = load_config(str(ROOT / "conf/experiment/quickstart.yaml"), [f"model.path={model}", "coldstart.steps=0"])
    learner = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    source = DeepSpeedWeightSource(learner, zero_stage=0, rank=0, tied=learner.config.tie_word_embeddings)
    engine = RolloutEngine(str(model), model=config.model, rollout=config.rollout, device=config.cluster.device, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        publisher = WeightPublisher(source, bucket_bytes=config.weights.bucket_bytes, sends=True, root=folder)
        await engine.start()
        series: dict[str, list[float]] = {"publish": [], "paused": [], "of it: verify": [], "of it: vLLM's loading": []}
        paths: tuple[str, ...] = ()
        try:
            for version in range(1, rounds + 3):
                if paths:
                    await engine.expect_weights(paths, version)
                begin = time.perf_counter()
                (found,) = await asyncio.to_thread(lambda version=version: list(publisher.publish(version, compare=False)))
                assert isinstance(found, Shipment)
                assert found.paths is not None
                published, paths = time.perf_counter(), found.paths
                receipt = await engine.update_weights(StagedUpdate(paths=found.paths, manifest=found.manifest), version)
                if version > 2:  # the first two pay for what is done once
                    measured = (published - begin, receipt.paused_s, receipt.verify_s, receipt.load_s)
                    for values, seconds in zip(series.values(), measured, strict=True):
                        values.append(1000 * seconds)
        finally:
            await engine.close()
            publisher.close()
    against = Series("paused", series["paused"], "ms")
    head = "### One sync of the quickstart's model to an idle engine\n\n| | median | spread | share of the pause |\n|---|---|---|---|\n"
    return head + "".join(Series(name, values, "ms").row(against) + "\n" for name, values in series.items())


if __name__ == "__main__":
    main()

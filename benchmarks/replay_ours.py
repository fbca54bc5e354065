"""This project's replay as contestants of benchmarks/replay.py."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from algorithms.schema import to_record_batch
from algorithms.types import Trajectory
from algorithms.wire import Parcel
from benchmarks.replay_contestants import CAPACITY_BYTES, SYNC_S, pump, tokens_of
from conf.schema import ReplayConfig, ReplayMode
from replay.actor import ReplayActor
from replay.buffer import ReplayBuffer
from replay.client import ReplayReader, ReplayWriter
from tests.fakes import make_trajectory


def new_rows(batch: int, tokens: int) -> list[Trajectory]:
    """Trajectories of groups of up to 8."""
    return [make_trajectory(prompt_id="p", index=i % 8, response_tokens=tokens, prompt_tokens=8) for i in range(batch)]


def renamed(template: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """The same rows as other groups, numbered from ``first`` on."""
    groups = [f"p{first + i // 8}@0" for i in range(template.num_rows)]
    columns = template.columns
    columns[0] = pa.array([f"{group}/{i % 8}" for i, group in enumerate(groups)])
    columns[1] = pa.array(groups)
    return pa.RecordBatch.from_arrays(columns, schema=template.schema)


class Ours:
    """The replay actor of this project; ``journal`` with its journal on, ``client`` through ReplayWriter and ReplayReader, or both."""

    def __init__(self, kib: float, variant: str, actor: Any = None) -> None:
        self.tokens, self.count, self.variant = tokens_of(kib), 0, variant
        size = int(CAPACITY_BYTES / (kib * 1024))
        config = ReplayConfig(
            mode=ReplayMode.prioritized,
            max_trajectories=size,
            max_bytes=4 * CAPACITY_BYTES,
            journal_sync_s=2 * SYNC_S,  # an fsync begins when half of it is over
        )
        if actor is None:
            folder = tempfile.mkdtemp(dir=sys.argv[3]) if "journal" in variant else None
            actor = ReplayActor.options(num_cpus=0).remote(config, seed=0, journal=folder)
        self.replay = self.actor = actor
        self.writer = ReplayWriter(self.replay)
        self.prepared: dict[int, list] = {}

    def batches(self, batch: int, num: int) -> list:
        """Batches of new groups of up to 8, made outside of the measured time; all share the payload of one."""
        template = to_record_batch(new_rows(batch, self.tokens))
        made = [renamed(template, self.count + i * -(-batch // 8)) for i in range(num)]
        self.count += num * -(-batch // 8)
        return made

    def prepare(self, batch: int, seconds: float) -> None:
        self.prepared[batch] = self.batches(batch, int(seconds * (2500 if batch >= 256 else 20000 if batch >= 16 else 150000)))

    def insert(self, batch: int, seconds: float) -> float:
        made = iter(self.prepared.pop(batch))
        if "client" in self.variant:
            rate = pump(lambda: self.writer.insert(next(made)), lambda _: None, seconds, batch)
            begin = time.perf_counter()
            last = self.writer.insert(self.batches(batch, 1)[0])
            last.result()  # everything before it was acknowledged, too
            return rate * seconds / (seconds + time.perf_counter() - begin)
        return pump(lambda: self.replay.insert.remote(Parcel(next(made))), ray.get, seconds, batch)

    def sample(self, batch: int, seconds: float) -> float:
        if "client" in self.variant:
            batches = iter(ReplayReader(self.replay, batch_size=batch))
            return pump(lambda: None, lambda _: next(batches), seconds, batch)

        def draw() -> Any:
            return self.replay.sample.options(num_returns=2).remote(batch_size=batch)[1]

        return pump(draw, ray.get, seconds, batch)

    def update(self, batch: int, seconds: float) -> float:
        keys = ray.get(self.replay.sample.options(num_returns=2).remote(batch_size=batch))[1]["key"].to_numpy()
        values = np.random.default_rng(0).random(batch)
        if "client" in self.variant:
            rate = pump(lambda: self.writer.update_priorities(keys, values), lambda _: None, seconds, batch)
            begin = time.perf_counter()
            self.writer.update_priorities(keys, values).result()
            return rate * seconds / (seconds + time.perf_counter() - begin)
        return pump(lambda: self.replay.update_priorities.remote(keys, values), ray.get, seconds, batch)


class OursLocal:
    """This project's replay buffer in this process."""

    def __init__(self, kib: float) -> None:
        self.tokens, self.count = tokens_of(kib), 0
        size = int(CAPACITY_BYTES / (kib * 1024))
        config = ReplayConfig(mode=ReplayMode.prioritized, max_trajectories=size, max_bytes=4 * CAPACITY_BYTES)
        self.buffer = ReplayBuffer(config, seed=0)

    def prepare(self, batch: int, seconds: float) -> None:
        template = to_record_batch(new_rows(batch, self.tokens))
        per_batch = -(-batch // 8)
        self.made = [renamed(template, self.count + i * per_batch) for i in range(int(seconds * (1000 if batch >= 256 else 8000)))]
        self.count += len(self.made) * per_batch

    def insert(self, batch: int, seconds: float) -> float:
        made = iter(self.made)
        return pump(lambda: self.buffer.insert(next(made)), lambda _: None, seconds, batch)

    def sample(self, batch: int, seconds: float) -> float:
        return pump(lambda: self.buffer.sample(batch_size=batch), lambda _: None, seconds, batch)

    def update(self, batch: int, seconds: float) -> float:
        keys, values = self.buffer.sample(batch_size=batch).keys, np.random.default_rng(0).random(batch)
        return pump(lambda: self.buffer.update_priorities(keys, values), lambda _: None, seconds, batch)

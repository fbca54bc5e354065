"""One contestant of benchmarks/replay.py in a process, and in a virtual environment, of its own.

Commands come in as lines of JSON on standard input, rates go out as lines on standard output. All contestants get the same payload: token
ids (int32) and log-probs (float32) of equal length, in the form that each stores natively, with up to WINDOW calls under way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

WINDOW = 4  # calls under way
CAPACITY_BYTES = 400 * 2**20


def tokens_of(kib: float) -> int:
    """Tokens of an item of a size: 8 bytes each."""
    return max(1, int(kib * 1024) // 8)


def pump(call: Callable[[], Any], wait: Callable[[Any], Any], seconds: float, per_call: int) -> float:
    """Items a second, with WINDOW calls under way."""
    under_way: deque = deque()
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        under_way.append(call())
        if len(under_way) >= WINDOW:
            wait(under_way.popleft())
            done += 1
    while under_way:
        wait(under_way.popleft())
        done += 1
    return done * per_call / (time.perf_counter() - begin)


class Ours:
    """The replay actor of this project; ``journal`` with its journal on, ``client`` through ReplayWriter and ReplayReader."""

    def __init__(self, kib: float, variant: str) -> None:
        import ray

        from algorithms.schema import to_record_batch
        from conf.schema import ReplayConfig, ReplayMode
        from replay.actor import ReplayActor
        from replay.client import ReplayReader, ReplayWriter
        from tests.fakes import make_trajectory

        self.ray, self.to_batch, self.make = ray, to_record_batch, make_trajectory
        self.tokens, self.count, self.variant = tokens_of(kib), 0, variant
        size = int(CAPACITY_BYTES / (kib * 1024))
        config = ReplayConfig(mode=ReplayMode.prioritized, max_trajectories=size, max_bytes=4 * CAPACITY_BYTES)
        self.folder = sys.argv[3] if len(sys.argv) > 3 else None
        self.replay = ReplayActor.options(num_cpus=0).remote(config, seed=0, journal=self.folder if variant == "journal" else None)
        self.writer, self.reader = ReplayWriter(self.replay), ReplayReader
        self.prepared: dict[int, list] = {}

    def batches(self, batch: int, num: int) -> list:
        """Batches of new groups of up to 8, made outside of the measured time; all share the payload of one."""
        import pyarrow as pa

        rows = [self.make(prompt_id="p", index=i % 8, response_tokens=self.tokens, prompt_tokens=8) for i in range(batch)]
        template = self.to_batch(rows)
        made = []
        for _ in range(num):
            groups = [f"p{self.count + i // 8}@0" for i in range(batch)]
            self.count += -(-batch // 8)
            columns = template.columns
            columns[0] = pa.array([f"{group}/{i % 8}" for i, group in enumerate(groups)])
            columns[1] = pa.array(groups)
            made.append(pa.RecordBatch.from_arrays(columns, schema=template.schema))
        return made

    def prepare(self, batch: int, seconds: float) -> None:
        self.prepared[batch] = self.batches(batch, int(seconds * (500 if batch >= 256 else 5000 if batch >= 16 else 30000)))

    def insert(self, batch: int, seconds: float) -> float:
        made = iter(self.prepared.pop(batch))
        if self.variant == "client":
            rate = pump(lambda: self.writer.insert(next(made)), lambda _: None, seconds, batch)
            begin = time.perf_counter()
            last = self.writer.insert(self.batches(batch, 1)[0])
            last.result()  # everything before it was acknowledged, too
            return rate * seconds / (seconds + time.perf_counter() - begin)
        return pump(lambda: self.replay.insert.remote(next(made)), self.ray.get, seconds, batch)

    def sample(self, batch: int, seconds: float) -> float:
        if self.variant == "client":
            batches = iter(self.reader(self.replay, batch_size=batch))
            return pump(lambda: None, lambda _: next(batches), seconds, batch)

        def draw() -> Any:
            return self.replay.sample.options(num_returns=2).remote(batch_size=batch)[1]

        return pump(draw, self.ray.get, seconds, batch)

    def update(self, batch: int, seconds: float) -> float:
        keys = self.ray.get(self.replay.sample.options(num_returns=2).remote(batch_size=batch))[1]["key"].to_numpy()
        values = np.random.default_rng(0).random(batch)
        if self.variant == "client":
            rate = pump(lambda: self.writer.update_priorities(keys, values), lambda _: None, seconds, batch)
            begin = time.perf_counter()
            self.writer.update_priorities(keys, values).result()
            return rate * seconds / (seconds + time.perf_counter() - begin)
        return pump(lambda: self.replay.update_priorities.remote(keys, values), self.ray.get, seconds, batch)


class TorchRL:
    """torchrl's prioritised buffer, as a Ray actor or in process; without its compiled trees it draws uniformly and updates nothing."""

    def __init__(self, kib: float, variant: str) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer

        self.torch, self.dict, self.tokens = torch, TensorDict, tokens_of(kib)
        size = int(CAPACITY_BYTES / (kib * 1024))

        class Buffer:
            def __init__(self) -> None:
                torch.set_num_threads(1)
                try:
                    sampler = PrioritizedSampler(max_capacity=size, alpha=1.0, beta=1.0)
                except RuntimeError:  # its compiled trees don't load beside every torch; drawing uniformly is less work
                    sampler = None
                self.rb = TensorDictReplayBuffer(storage=LazyTensorStorage(size), sampler=sampler, batch_size=256)

            def extend(self, data: Any) -> int:
                self.rb.extend(data)
                return 1

            def sample(self, batch: int) -> Any:
                return self.rb.sample(batch)

            def update(self, index: Any, priority: Any) -> int | None:
                if not isinstance(self.rb.sampler, PrioritizedSampler):
                    return None
                self.rb.sampler.update_priority(index, priority)
                return 1

        self.local = variant == "local"
        if self.local:
            buffer = Buffer()
            self.call, self.get = (lambda name, *a: getattr(buffer, name)(*a)), (lambda x: x)
        else:
            import ray

            actor = ray.remote(num_cpus=0)(Buffer).remote()
            self.call, self.get = (lambda name, *a: getattr(actor, name).remote(*a)), ray.get

    def prepare(self, batch: int, seconds: float) -> None:
        shape = (batch, self.tokens)
        self.data = self.dict({"ids": self.torch.ones(shape, dtype=self.torch.int32), "logprobs": self.torch.rand(shape)}, [batch])

    def insert(self, batch: int, seconds: float) -> float:
        return pump(lambda: self.call("extend", self.data), self.get, seconds, batch)

    def sample(self, batch: int, seconds: float) -> float:
        return pump(lambda: self.call("sample", batch), self.get, seconds, batch)

    def update(self, batch: int, seconds: float) -> float:
        index, priority = self.torch.randint(0, 256, (batch,)), self.torch.rand(batch)
        if self.get(self.call("update", index, priority)) is None:
            raise NotImplementedError
        return pump(lambda: self.call("update", index, priority), self.get, seconds, batch)


class TransferQueue:
    """TransferQueue's key-value interface; it has no priorities, so keys are drawn uniformly by the caller."""

    def __init__(self, kib: float, variant: str) -> None:
        import torch
        import transfer_queue as tq
        from tensordict import TensorDict

        self.torch, self.tq, self.dict, self.tokens = torch, tq, TensorDict, tokens_of(kib)
        self.size, self.keys, self.count = int(CAPACITY_BYTES / (kib * 1024)), [], 0
        tq.init()

    def prepare(self, batch: int, seconds: float) -> None:
        shape = (batch, self.tokens)
        self.data = self.dict({"ids": self.torch.ones(shape, dtype=self.torch.int32), "logprobs": self.torch.rand(shape)}, [batch])

    def insert(self, batch: int, seconds: float) -> float:
        begin, done, cleared = time.perf_counter(), 0, 0.0
        while time.perf_counter() - begin - cleared < seconds:
            names = [f"k{self.count + i}" for i in range(batch)]
            self.count += batch
            self.tq.kv_batch_put(keys=names, partition_id="train", fields=self.data)
            self.keys += names
            done += batch
            if len(self.keys) > self.size:  # it has no eviction; clearing is not counted
                start = time.perf_counter()
                self.tq.kv_clear(keys=self.keys[: self.size // 2], partition_id="train")
                del self.keys[: self.size // 2]
                cleared += time.perf_counter() - start
        return done / (time.perf_counter() - begin - cleared)

    def sample(self, batch: int, seconds: float) -> float:
        rng = np.random.default_rng(0)

        def draw() -> Any:
            chosen = [self.keys[i] for i in rng.choice(len(self.keys), batch, replace=False)]
            return self.tq.kv_batch_get(keys=chosen, partition_id="train")

        return pump(draw, lambda x: x, seconds, batch)


REVERB_SERVER = """
import sys, reverb
table = reverb.Table(name="t", sampler=reverb.selectors.Prioritized(1.0), remover=reverb.selectors.Fifo(), max_size=int(sys.argv[1]),
                     rate_limiter=reverb.rate_limiters.MinSize(1))
server = reverb.Server([table])
print("PORT", server.port, flush=True)
sys.stdin.read()
"""


class Reverb:
    """Reverb over loopback, prioritised, through its own client."""

    def __init__(self, kib: float, variant: str) -> None:
        import reverb

        self.tokens = tokens_of(kib)
        size = int(CAPACITY_BYTES / (kib * 1024))
        # a server of this process would be read without the wire
        self.server = subprocess.Popen(
            [sys.executable, "-c", REVERB_SERVER, str(size)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.server.stdout is not None
        port = next(line for line in self.server.stdout if line.startswith("PORT")).split()[1]
        self.client = reverb.Client(f"localhost:{port}")

    def prepare(self, batch: int, seconds: float) -> None:
        rng = np.random.default_rng(0)
        self.items = [(rng.integers(0, 9**5, self.tokens, np.int32), rng.random(self.tokens, np.float32)) for _ in range(256)]

    def insert(self, batch: int, seconds: float) -> float:
        begin, done = time.perf_counter(), 0
        with self.client.trajectory_writer(num_keep_alive_refs=1) as writer:
            while time.perf_counter() - begin < seconds:
                for i in range(batch):
                    ids, logprobs = self.items[(done + i) % 256]
                    writer.append({"ids": ids, "logprobs": logprobs})
                    row = {name: writer.history[name][-1:] for name in ("ids", "logprobs")}
                    writer.create_item(table="t", priority=1.0, trajectory=row)
                writer.flush(block_until_num_items=WINDOW * batch)
                done += batch
            writer.flush()
        return done / (time.perf_counter() - begin)

    def sample(self, batch: int, seconds: float) -> float:
        return pump(lambda: None, lambda _: list(self.client.sample("t", num_samples=batch)), seconds, batch)

    def update(self, batch: int, seconds: float) -> float:
        keys = [item[0].info.key for item in self.client.sample("t", num_samples=batch)]
        return pump(lambda: None, lambda _: self.client.mutate_priorities("t", updates=dict.fromkeys(keys, 0.5)), seconds, len(set(keys)))


CONTESTANTS = {"ours": Ours, "torchrl": TorchRL, "transferqueue": TransferQueue, "reverb": Reverb}


def main() -> None:
    name, _, variant = sys.argv[1].partition(":")
    kib = float(sys.argv[2])
    if not (name == "reverb" or variant == "local"):
        import ray

        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=2**30, log_to_driver=False, logging_level="ERROR")
    contestant = CONTESTANTS[name](kib, variant)
    print("READY", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["verb"] == "insert":
            contestant.prepare(order["batch"], order["seconds"])
        try:
            rate = getattr(contestant, order["verb"])(order["batch"], order["seconds"])
        except (AttributeError, NotImplementedError):
            rate = None
        print("RATE " + json.dumps(rate), flush=True)


if __name__ == "__main__":
    main()

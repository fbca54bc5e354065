"""One contestant of benchmarks/replay.py in a process, and in a virtual environment, of its own.

Commands come in as lines of JSON on standard input, rates go out as lines on standard output. All contestants get the same payload: token
ids (int32) and log-probs (float32) of equal length, in the form that each stores natively, with up to WINDOW calls under way.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 4  # calls under way
CAPACITY_BYTES = 400 * 2**20
SYNC_S = 0.1  # between two fsyncs of a journal


class UnsupportedError(RuntimeError):
    """A contestant has no such operation; the table shows a dash. Whatever else goes wrong is a failure of the benchmark."""


def tokens_of(kib: float) -> int:
    """Tokens of an item of a size: 8 bytes each."""
    return max(1, int(kib * 1024) // 8)


def processor_seconds() -> float:
    """What this process and all that it started have used, of all cores: the cost that other work on the machine doesn't change."""
    parents, used = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        number = int(entry.parent.name)
        parents[number], used[number] = int(fields[1]), sum(map(int, fields[11:13]))
    mine = {os.getpid()}
    while more := {number for number, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(used.get(number, 0) for number in mine) / os.sysconf("SC_CLK_TCK")


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


class Floor:
    """No replay at all: an actor that takes the same bytes and drops them, and hands out the same bytes again and again."""

    def __init__(self, kib: float, variant: str, actor: Any = None) -> None:
        import ray

        class Empty:
            def __init__(self, tokens: int) -> None:
                self.rows = np.ones((256, tokens), np.int32), np.ones((256, tokens), np.float32)

            def take(self, *_: Any) -> int:
                return 1

            def give(self, batch: int) -> Any:
                return tuple(column[:batch] for column in self.rows)

        self.tokens, self.get = tokens_of(kib), ray.get
        self.actor = ray.remote(num_cpus=0)(Empty).remote(self.tokens) if actor is None else actor

    def prepare(self, batch: int, seconds: float) -> None:
        self.data = np.ones((batch, self.tokens), np.int32), np.ones((batch, self.tokens), np.float32)

    def insert(self, batch: int, seconds: float) -> float:
        return pump(lambda: self.actor.take.remote(*self.data), self.get, seconds, batch)

    def sample(self, batch: int, seconds: float) -> float:
        return pump(lambda: self.actor.give.remote(batch), self.get, seconds, batch)

    def update(self, batch: int, seconds: float) -> float:
        keys, values = np.arange(batch), np.random.default_rng(0).random(batch)
        return pump(lambda: self.actor.take.remote(keys, values), self.get, seconds, batch)


class Disk:
    """No replay either: the bytes of a journal of these items, written to files past the page cache; ``over``: to files that are there."""

    CALL_ITEMS, FILE_BYTES, FILES = 1024, 128 * 2**20, 4

    def __init__(self, kib: float, variant: str, actor: Any = None) -> None:
        self.item_bytes, self.over, self.folder = int(kib * 1024), variant == "over", Path(tempfile.mkdtemp(dir=sys.argv[3]))

    def prepare(self, batch: int, seconds: float) -> None:
        self.data = mmap.mmap(-1, -(-self.CALL_ITEMS * self.item_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.data.write(os.urandom(len(self.data)))
        for number in range(self.FILES if self.over else 0):
            with (self.folder / str(number)).open("wb") as file:
                while file.tell() < self.FILE_BYTES + len(self.data):
                    file.write(self.data)
                os.fsync(file.fileno())

    def insert(self, batch: int, seconds: float) -> float:
        done, begin, synced, number, handle = 0, time.perf_counter(), 0.0, 0, -1
        while (now := time.perf_counter()) - begin < seconds:
            if handle < 0:
                number, written = number + 1, 0
                name = str(number % self.FILES if self.over else number)
                handle = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
            written += os.pwrite(handle, self.data, written)
            done += self.CALL_ITEMS
            ends = written >= self.FILE_BYTES
            if ends or now - synced > SYNC_S:
                os.fsync(handle)
                synced = time.perf_counter()
            if ends:
                os.close(handle)
                handle = -1
        if handle >= 0:
            os.close(handle)
        elapsed = time.perf_counter() - begin
        for path in self.folder.iterdir():
            if not self.over:
                path.unlink()
        return done / elapsed


class RLlib:
    """RLlib's prioritised buffer in this process."""

    def __init__(self, kib: float, variant: str, actor: Any = None) -> None:
        from ray.rllib.policy.sample_batch import SampleBatch
        from ray.rllib.utils.replay_buffers import PrioritizedReplayBuffer

        self.batch, self.tokens = SampleBatch, tokens_of(kib)
        self.buffer = PrioritizedReplayBuffer(capacity=int(CAPACITY_BYTES / (kib * 1024)), alpha=1.0)

    def prepare(self, batch: int, seconds: float) -> None:
        shape = (batch, self.tokens)
        self.data = self.batch({"ids": np.ones(shape, np.int32), "logprobs": np.ones(shape, np.float32)})

    def insert(self, batch: int, seconds: float) -> float:
        return pump(lambda: self.buffer.add(self.data, weight=1.0), lambda _: None, seconds, batch)

    def sample(self, batch: int, seconds: float) -> float:
        return pump(lambda: self.buffer.sample(batch, beta=1.0), lambda _: None, seconds, batch)

    def update(self, batch: int, seconds: float) -> float:
        indices = np.unique(self.buffer.sample(batch, beta=1.0)["batch_indexes"])
        values = np.random.default_rng(0).random(len(indices)) + 0.1
        return pump(lambda: self.buffer.update_priorities(indices, values), lambda _: None, seconds, len(indices))


class TorchRL:
    """torchrl's buffer, as a Ray actor or in process, prioritised or, as ``uniform``, without priorities, which is less work."""

    def __init__(self, kib: float, variant: str, actor: Any = None) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer

        self.torch, self.dict, self.tokens = torch, TensorDict, tokens_of(kib)
        size = int(CAPACITY_BYTES / (kib * 1024))

        class Buffer:
            def __init__(self) -> None:
                torch.set_num_threads(1)
                sampler = None if variant == "uniform" else PrioritizedSampler(max_capacity=size, alpha=1.0, beta=1.0)
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

            self.actor = actor = ray.remote(num_cpus=0)(Buffer).remote() if actor is None else actor
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
            raise UnsupportedError("torchrl without priorities has none to update")
        return pump(lambda: self.call("update", index, priority), self.get, seconds, batch)


class TransferQueue:
    """TransferQueue's key-value interface; it has no priorities, so keys are drawn uniformly by the caller."""

    actor = None

    def __init__(self, kib: float, variant: str, actor: Any = None) -> None:
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
            names = [f"k{os.getpid()}-{self.count + i}" for i in range(batch)]
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

    def __init__(self, kib: float, variant: str, actor: Any = None) -> None:
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


def contestant(name: str, kib: float, variant: str, actor: Any = None) -> Any:
    """A contestant, or another of its writers if it has an actor already."""
    if name == "ours":
        from benchmarks.replay_ours import Ours, OursLocal  # the peers' environments have none of it

        return OursLocal(kib) if variant == "local" else Ours(kib, variant, actor)
    kinds = {"floor": Floor, "disk": Disk, "rllib": RLlib, "torchrl": TorchRL, "transferqueue": TransferQueue, "reverb": Reverb}
    return kinds[name](kib, variant, actor)


class Along:
    """One of several writers, in a process of its own."""

    def __init__(self, name: str, kib: float, variant: str, actor: Any, number: int) -> None:
        self.writer = contestant(name, kib, variant, actor)
        self.writer.count = number * 10**7  # so that no two write the same groups

    def prepare(self, batch: int, seconds: float) -> None:
        """Make what is to be written."""
        self.writer.prepare(batch, seconds)

    def insert(self, batch: int, seconds: float) -> float:
        """Items a second."""
        return self.writer.insert(batch, seconds)


def insert_together(name: str, kib: float, variant: str, actor: Any, first: int, order: dict) -> float:
    """Items a second of several writers at the same time."""
    import ray

    writers = [ray.remote(num_cpus=0)(Along).remote(name, kib, variant, actor, first + i) for i in range(order["writers"])]
    ray.get([writer.prepare.remote(order["batch"], order["seconds"]) for writer in writers])
    return sum(ray.get([writer.insert.remote(order["batch"], order["seconds"]) for writer in writers]))


def operation(measured: Any, verb: str) -> Callable[[int, float], float]:
    """A contestant's operation, called with a batch size and seconds; TransferQueue, for one, has no priorities to update."""
    if not hasattr(type(measured), verb):
        raise UnsupportedError(f"{type(measured).__name__} has no {verb}")
    return getattr(measured, verb)


def main() -> None:
    """Answer orders on standard input until it ends."""
    name, _, variant = sys.argv[1].partition(":")
    kib = float(sys.argv[2])
    in_process = variant == "local" or name in ("rllib", "disk")
    if not (name == "reverb" or in_process):
        import ray

        # logical processors only: TransferQueue's units ask for one each
        ray.init(num_cpus=16, include_dashboard=False, object_store_memory=2**30, log_to_driver=False, logging_level="ERROR")
    measured = contestant(name, kib, variant)
    print("READY", flush=True)
    writers = 0
    for line in sys.stdin:
        order = json.loads(line)
        together = order["verb"] == "insert" and order["writers"] > 1
        if order["verb"] == "insert" and not together:
            measured.prepare(order["batch"], order["seconds"])
        begin, used = time.perf_counter(), processor_seconds()
        try:
            if together:
                rate = insert_together(name, kib, variant, measured.actor, writers + 1, order)
                writers += order["writers"]
            else:
                rate = operation(measured, order["verb"])(order["batch"], order["seconds"])
        except UnsupportedError:
            rate = None
        share = (processor_seconds() - used) / (time.perf_counter() - begin)  # of a core
        cost = None if rate is None or together else share / rate * 1e6
        print("RATE " + json.dumps(None if rate is None else [rate, cost]), flush=True)


if __name__ == "__main__":
    main()

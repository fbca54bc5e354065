"""The replay actor: the Ray shell of the replay buffer.

Owns concurrency and deadlines. Must not know the learner, the rollout actors or how draws are made.

Calls that touch the rows run in the concurrency group "data", on one event loop, one at a time; "control" has an event loop and thread
of its own and reads finished values only, so it answers while samples wait, rows are copied or a snapshot is written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from algorithms.wire import Parcel
from conf.schema import ReplayConfig
from replay.again import LastDraw
from replay.archive import TrajectoryArchive
from replay.buffer import ReplayBuffer
from replay.drawn import Drawn, Sample
from replay.durable import DurableReplay
from replay.full_disk import when_there_is_room
from replay.groups import InsertReceipt
from replay.intake import Admitted, Prepared, prepare
from replay.lent import Borrower, LentMemoryError, Letter, Place, Room, get
from replay.limiter import FreshGroupLimiter
from replay.recovery import Recovery, is_journal
from replay.requests import CallSizes, SampleRequest
from replay.snapshot import Saved, read_snapshot, write_snapshot

logger = logging.getLogger(__name__)

DATA_CALLS = 1000  # at once; a waiting sample holds one, and inserts must always find another
CONTROL_CALLS = 16
COPIERS = 2  # threads that copy rows
ROW_WRITERS = 2  # threads that write rows to the journal: one takes the checksum of what comes next while the other waits for the disk
READ_AT_ONCE = 8 * 2**20  # bytes: copying fewer takes some milliseconds at most, and handing them to a thread costs as much as a part of it
WRITE_AT_ONCE = 256 * 2**10  # bytes, for the same reason

T = TypeVar("T")


@ray.remote(concurrency_groups={"data": DATA_CALLS, "control": CONTROL_CALLS})
class ReplayActor:
    """Central selective sample replay of a run.

    Args:
        config: of the replay.
        seed: of the draws.
        archive: folder that keeps every trajectory for people to read; None: none is kept.
        journal: folder of the journal, which is recovered first; None, or ``replay.journal=false``: none is kept.
        strict: False: skip what is damaged in the journal, which the log and ``health`` tell.
    """

    def __init__(
        self, config: ReplayConfig, *, seed: int, archive: str | None = None, journal: str | None = None, strict: bool = True
    ) -> None:
        self._config = config
        self._archive = TrajectoryArchive(archive) if archive is not None else None
        self._replay: ReplayBuffer | DurableReplay
        if journal is not None and config.journal:
            self._replay = DurableReplay(config, seed=seed, folder=journal, strict=strict)
            for problem in self._replay.problems:
                logger.warning("skipped in the journal: %s", problem)
        else:
            self._replay = ReplayBuffer(config, seed=seed)
        self._buffer = self._replay.buffer if isinstance(self._replay, DurableReplay) else self._replay
        self._borrower = Borrower()
        self._copiers = ThreadPoolExecutor(COPIERS, thread_name_prefix="replay-copier")
        self._writers = ThreadPoolExecutor(1, thread_name_prefix="replay-journal")
        self._row_writers = ThreadPoolExecutor(ROW_WRITERS, thread_name_prefix="replay-rows")
        self._last_insert: asyncio.Future[None] | None = None  # done when it has got to the door
        self._compacting: asyncio.Task[None] | None = None
        self._under_way = 0  # draws that were made, and whose rows are not in the archive yet
        self._limiter = FreshGroupLimiter(self._buffer)
        self._captured: Saved | None = None  # for a snapshot that is to be written
        self._base_lock = asyncio.Lock()  # one base of the journal is written at a time
        self._snapshot_lock = asyncio.Lock()  # one writer at a time: they'd share the folder's temporary files
        self._started = time.monotonic()
        self._stats = self._buffer.stats()  # replaced as a whole after each change: the control thread reads this alone

    def __repr__(self) -> str:
        return f"ReplayActor(mode={self._config.mode.value}, node={ray.util.get_node_ip_address()})"

    @ray.method(concurrency_group="data")
    async def insert(
        self,
        batch: pa.RecordBatch | Letter,
        *,
        turns: Mapping[str, int] | None = None,
        images: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> InsertReceipt:
        """Wait for room, take in whole rollout groups and wake the samples that wait for them; see ReplayBuffer.insert.

        Args:
            batch: see ReplayBuffer.insert; it travels fastest as ``algorithms.wire.Parcel(batch)``, or from the same node in lent memory.
            turns: see ReplayBuffer.insert.
            images: see ReplayBuffer.insert.
            timeout_s: how long to wait while rows that no step has consumed fill the buffer, or draws must come first; None:
                ``replay.timeout_s``.

        Returns:
            What was new.

        Raises:
            TimeoutError: when no step makes room in time; nothing is inserted.
            ReplayFullError: when the batch alone is larger than the buffer.
            OSError: when the journal can't be written; nothing is inserted.
        """
        if isinstance(batch, Letter):
            batch = get(batch, self._borrower.memory(batch.place))
        rows, deadline_s = batch.num_rows, self._config.timeout_s if timeout_s is None else timeout_s
        if self._buffer.size >= self._config.min_size and self._buffer.ratio.never(inserts=rows):
            raise ValueError(f"{rows} trajectories in one insert are more than the error budget can ever let in: {self._buffer.ratio}")
        prepared = prepare(batch, images or {})  # before the door, so that it goes on beside the write of another insert
        before, self._last_insert = self._last_insert, asyncio.get_running_loop().create_future()
        passed = self._last_insert

        async def attempt() -> InsertReceipt:
            nonlocal prepared
            try:
                if prepared.written is None:
                    prepared = await self._write_rows(prepared)
                if before is not None:  # inserts get to the door in the order in which they came
                    await asyncio.wait([before])
            finally:  # but none waits for one that can't be written
                if not passed.done():
                    passed.set_result(None)
            async with self._limiter.room(
                lambda: self._buffer.has_room(rows, prepared.num_bytes) and self._buffer.ratio.may_insert(rows, size=self._buffer.size),
                num_trajectories=rows,
                timeout_s=deadline_s,
                describe=self._why_shut if self._config.samples_per_insert is not None else None,
            ):
                admitted = self._buffer.admit(prepared, turns)
                await self._write(admitted)
                receipt = self._buffer.add(admitted)
                self._stats = self._buffer.stats()
            return receipt

        try:
            return await when_there_is_room(attempt, deadline_s, f"{rows} trajectories")
        finally:
            if isinstance(self._replay, DurableReplay):
                self._replay.settle(prepared)
            self._compact_if_due()

    async def _write_rows(self, prepared: Prepared) -> Prepared:
        """Bring rows into the journal, if there is one, beside anything else."""
        replay = self._replay
        if not isinstance(replay, DurableReplay) or not replay.writes_first(prepared):
            return prepared
        writing = asyncio.get_running_loop().run_in_executor(self._row_writers, replay.write_rows, prepared)
        try:
            await asyncio.wait([writing])
        except asyncio.CancelledError:  # nobody waits for the rows any more, which are written all the same
            writing.add_done_callback(lambda done: None if done.exception() else replay.settle(done.result()))
            raise
        return writing.result()

    async def _write(self, admitted: Admitted) -> None:
        """Bring an insert into the journal, if there is one, while the door is shut. Once begun, it goes on to its end."""
        replay = self._replay
        if not isinstance(replay, DurableReplay):
            return
        if admitted.num_unwritten_bytes <= WRITE_AT_ONCE:
            replay.write(admitted)
            return
        writing = asyncio.get_running_loop().run_in_executor(self._writers, replay.write, admitted)
        while not writing.done():
            try:
                await asyncio.wait([writing])
            except asyncio.CancelledError:
                logger.info("an insert was cancelled while it was being written, which is too late")
        writing.result()

    @ray.method(concurrency_group="data")
    async def sample(
        self,
        *,
        batch_size: int,
        num_updates: int = 1,
        num_shards: int = 1,
        policy_version: int | None = None,
        num_groups: int = 0,
        max_staleness: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        into: Place | None = None,
    ) -> tuple[dict[str, float] | Parcel | Letter, ...]:
        """Wait for what the draws need, then draw; see ReplayBuffer.sample, and SampleRequest for the arguments.

        Call it as ``replay.sample.options(num_returns=1 + num_shards).remote(...)``: every rank's rows are an object of their own, so
        that a driver can pass the references on without ever holding the rows. Only the draw itself holds the buffer: rows are copied
        out in other threads.

        Args:
            batch_size: see SampleRequest.
            num_updates: see SampleRequest.
            num_shards: see SampleRequest.
            policy_version: see SampleRequest.
            num_groups: see SampleRequest; above 0 the call waits for them, at 0 for rows that can be drawn without.
            max_staleness: see SampleRequest.
            timeout_s: how long to wait; None: ``replay.timeout_s``.
            request_id: with a journal, a draw that is asked for again under the id of the last one gives the same again.
            into: lent memory of this node that the rows are to go to, for D = 1; None: the object store.

        Returns:
            The statistics, then D tables of SAMPLE_SCHEMA; a letter instead of the only one if it fits into the lent memory.

        Raises:
            LentMemoryError: when there is no such memory here; nothing is drawn.
            TimeoutError: when the groups or rows don't come in time; nothing is consumed.
        """
        room = Room(into, self._borrower.memory(into)) if into is not None and num_shards == 1 else None
        replay = self._replay
        drawn: Drawn | LastDraw | None = replay.answered(request_id) if isinstance(replay, DurableReplay) else None
        if drawn is None:
            request = SampleRequest(
                batch_size=batch_size,
                num_updates=num_updates,
                num_shards=num_shards,
                policy_version=policy_version,
                num_groups=num_groups,
                max_staleness=max_staleness,
            )
            drawn = await self._draw(request, self._config.timeout_s if timeout_s is None else timeout_s, request_id)

        def read() -> tuple[Sample, list[Parcel] | list[Letter]]:
            # what is kept to be answered again must not lie in memory that is lent for this answer
            sample = drawn.read(room.take) if room is not None and isinstance(drawn, Drawn) else drawn.read()
            parcels = [Parcel(shard) for shard in sample.shards]
            letter = room.put(parcels[0]) if room is not None else None
            return sample, parcels if letter is None else [letter]

        self._under_way += 1
        try:
            at_once = isinstance(drawn, Drawn) and drawn.num_bytes <= READ_AT_ONCE
            sample, rows = read() if at_once else await self._in_thread(read)
            if self._archive is not None and sample.consumed and policy_version is not None:
                await asyncio.to_thread(self._archive.write_or_keep, policy_version, sample.consumed)
        finally:
            self._under_way -= 1
        return (sample.stats, *rows)

    async def _draw(self, request: SampleRequest, timeout_s: float, request_id: str | None) -> Drawn | LastDraw:
        """Wait for what the draws need, then draw."""
        if self._buffer.ratio.never(samples=request.num_rows):
            raise ValueError(f"{request.num_rows} draws at once are more than the error budget can ever let out: {self._buffer.ratio}")

        async def attempt() -> Drawn | LastDraw:
            async with self._gate(request, timeout_s):
                replay = self._replay
                drawn = replay.draw(request, request_id=request_id) if isinstance(replay, DurableReplay) else replay.draw(request)
                self._stats = self._buffer.stats()
            return drawn

        return await when_there_is_room(attempt, timeout_s, f"a draw from {request.num_groups} groups")

    def _in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        """Copying rows leaves Python free for the other calls."""
        return asyncio.get_running_loop().run_in_executor(self._copiers, work)

    def _read(self, folder: str, strict: bool) -> Saved:
        if not is_journal(folder):
            return read_snapshot(folder)
        recovered = Recovery(self._config, seed=0, folder=folder, strict=strict)
        for problem in recovered.problems:
            logger.warning("skipped in the journal: %s", problem)
        return recovered.buffer.capture()

    def _compact_if_due(self) -> None:
        """Let the journal be written anew, beside other calls, once it outweighs what it leads to."""
        replay = self._replay
        if isinstance(replay, DurableReplay) and self._compacting is None and replay.wants_compaction:
            self._compacting = asyncio.get_running_loop().create_task(self._compact(replay))

    async def _compact(self, replay: DurableReplay) -> None:
        try:
            async with self._base_lock:
                await asyncio.to_thread(replay.sync)  # nearly all of it goes to the disk before the door is shut
                async with self._limiter.change():
                    if self._archive is not None and self._under_way:  # a base would stand for draws that the archive hasn't yet
                        return
                    begun = await asyncio.to_thread(replay.begin_compaction)
                await asyncio.to_thread(replay.finish_compaction, begun)
        except OSError as error:  # the old files stay, so nothing is lost; the next change tries again
            logger.warning("the journal could not be compacted: %s", error)
        finally:
            self._compacting = None

    def _gate(self, request: SampleRequest, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """The door that a sample waits at."""
        buffer, num_rows, num_groups = self._buffer, request.num_rows, request.num_groups
        if buffer.draws_only_fresh or (num_groups and self._config.samples_per_insert is None):
            return self._limiter.fresh_groups(num_groups, timeout_s=timeout_s)
        return self._limiter.rows(
            lambda: (
                buffer.ready_groups >= num_groups
                and (buffer.num_drawable > 0 or num_groups > 0)
                and buffer.ratio.may_sample(num_rows, size=buffer.size)
            ),
            describe=lambda: (
                f"{num_rows} draws: {buffer.num_drawable} of {buffer.size} trajectories have a priority, "
                f"{buffer.ready_groups} of {num_groups} groups are there, {buffer.ratio}"
            ),
            timeout_s=timeout_s,
        )

    def _why_shut(self) -> str:
        """What an insert waited for, where two things can shut the door."""
        return f"{self._buffer.waiting_groups} groups wait for a step, {self._buffer.size} trajectories are there, {self._buffer.ratio}"

    @ray.method(concurrency_group="data")
    async def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.floating]) -> int:
        """Set what stands for |A| in P; see ReplayBuffer.update_priorities.

        Args:
            keys: [K].
            priorities: [K] >= 0.

        Returns:
            How many rows were there.
        """
        async with self._limiter.change():
            return self._replay.update_priorities(keys, priorities)

    @ray.method(concurrency_group="data")
    async def begin_snapshot(self) -> None:
        """Copy the content as it is now, for write_snapshot; what comes after this isn't in it."""
        async with self._limiter.change():
            self._captured = self._buffer.capture()

    @ray.method(concurrency_group="data")
    async def write_snapshot(self, folder: str) -> None:
        """Write what begin_snapshot has copied; inserts and samples go on meanwhile. See ReplayBuffer.snapshot.

        Args:
            folder: on a file system that every node which may run this actor sees.

        Raises:
            RuntimeError: when nothing was copied, or the process that copied it is gone.
            OSError: when the folder can't be written.
        """
        captured, self._captured = self._captured, None
        if captured is None:
            raise RuntimeError("the replay actor holds no copy of its content: it was started again since it made one")
        async with self._snapshot_lock:
            await asyncio.to_thread(write_snapshot, folder, captured)

    @ray.method(concurrency_group="data")
    async def snapshot(self, folder: str) -> None:
        """Both in one.

        Args:
            folder: as there.
        """
        await self.begin_snapshot()
        await self.write_snapshot(folder)

    @ray.method(concurrency_group="data")
    async def restore(self, folder: str, *, strict: bool = True) -> None:
        """Replace the content by a snapshot's; inserts and samples wait meanwhile. See ReplayBuffer.restore.

        Args:
            folder: with a snapshot, or with a journal that no actor writes to.
            strict: False: keep what is sound of a damaged journal. A damaged snapshot is an error in any case.
        """
        async with self._base_lock, self._limiter.change():
            saved = await asyncio.to_thread(self._read, folder, strict)
            await asyncio.to_thread(self._replay.load, saved)
            self._stats = self._buffer.stats()

    @ray.method(concurrency_group="control")
    async def stats(self) -> dict[str, int]:
        """Tell sizes and counters since the start of the run.

        Returns:
            Name -> count; see ReplayBuffer.stats.
        """
        return {**self._stats, "waiting_samples": self._limiter.num_waiting, "waiting_inserts": self._limiter.num_blocked}

    @ray.method(concurrency_group="control")
    async def call_sizes(self) -> CallSizes:
        """Tell how much one call should carry."""
        return CallSizes.largest(self._config)

    @ray.method(concurrency_group="control")
    async def borrows(self, place: Place) -> bool:
        """Tell whether memory that a caller would lend is there for this actor, which may be on another node."""
        try:
            self._borrower.memory(place)
        except LentMemoryError:
            return False
        return True

    @ray.method(concurrency_group="control")
    async def health(self) -> dict[str, Any]:
        """Tell that the actor lives.

        Returns:
            Its role, name, process id, uptime in seconds and how many samples and inserts wait.
        """
        return {
            "role": "replay",
            "name": repr(self),
            "pid": os.getpid(),
            "uptime_s": time.monotonic() - self._started,
            "waiting_samples": self._limiter.num_waiting,
            "waiting_inserts": self._limiter.num_blocked,
        }

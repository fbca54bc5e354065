"""A writer and a reader for code that inserts and draws a few rows at a time.

Owns what is under way between a process and the replay actor. Must not know the buffer. A call through Ray costs about a millisecond,
whether it carries one row or hundreds: so what piles up while a call is under way goes together with the next one. On the replay actor's
node large rows lie in memory that this process lends to the call (replay/lent.py), elsewhere they take Ray's object store.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from algorithms.wire import Parcel, concat_rows
from replay.groups import InsertReceipt
from replay.lent import Lender, LentMemoryError, Letter, Loan, Room
from replay.requests import CallSizes

CALLS_UNDER_WAY = 4  # of a writer: one on its way, one whose rows go into the journal, one being inserted, one being answered
BLOCK_BYTES = 24 * 2**20  # of a call, about: larger ones keep others waiting and cost hardly less a row
FIRST_ROWS = 256  # of a call before it's known how large rows are
FEW_BATCHES = 16  # that are put together in lent memory
BLOCKS_HELD = 3  # of a reader's answers that its caller may still look at while others are under way; more take the object store


class _Lending:
    """Memory for calls, if the replay actor is where it can use it.

    Args:
        replay: the replay actor.
        num_places: calls that may have some at the same time.
        timeout_s: for the question whether it can.
    """

    def __init__(self, replay: ActorHandle, num_places: int, timeout_s: float) -> None:
        self._replay = replay
        self._lender = Lender(num_places)
        self._timeout_s = timeout_s
        self._asked = False

    def lend(self, num_bytes: int) -> Loan | None:
        """See Lender.lend."""
        loan = self._lender.lend(num_bytes)
        if loan is not None and not self._asked:
            self._asked = True
            if not ray.get(self._replay.borrows.remote(loan.place), timeout=self._timeout_s):
                self.close()
                return None
        return loan

    def close(self) -> None:
        """Lend nothing more."""
        self._lender.close()


class ReplayWriter:
    """Sends inserts and priorities in the order of their calls, as many together as have piled up.

    A future is done when the replay actor has accepted what it stands for, not before.

    Args:
        replay: the replay actor.
        max_pending_rows: ``insert`` waits while so many are on their way.
        block_rows: that one call carries, if these aren't too many for replay's bounds (CallSizes) or more than BLOCK_BYTES; a batch with
            more of them goes alone.
        timeout_s: deadline of one call to the actor.
    """

    def __init__(self, replay: ActorHandle, *, max_pending_rows: int = 4096, block_rows: int = 1024, timeout_s: float = 600.0) -> None:
        self._replay = replay
        self._max_pending_rows = max_pending_rows
        self._block_rows = block_rows
        self._timeout_s = timeout_s
        self._inserts: deque[tuple[pa.RecordBatch, Future[InsertReceipt]]] = deque()
        self._priorities: deque[tuple[NDArray, NDArray, Future[int]]] = deque()
        self._changed = threading.Condition()
        self._pending_rows = 0
        self._most_rows = FIRST_ROWS  # that BLOCK_BYTES hold
        self._closed = False
        self._lending = _Lending(replay, CALLS_UNDER_WAY, timeout_s)
        self._sending = threading.Thread(target=self._send, name="replay-writer", daemon=True)
        self._sending.start()

    def insert(self, batch: pa.RecordBatch) -> Future[InsertReceipt]:
        """Insert whole groups.

        Args:
            batch: of TRAJECTORY_SCHEMA.

        Returns:
            Done with the receipt of the call that carried it, which may have carried other groups as well; or with its error.
        """
        done: Future[InsertReceipt] = Future()
        with self._changed:
            self._changed.wait_for(lambda: self._pending_rows < self._max_pending_rows)
            self._inserts.append((batch, done))
            self._pending_rows += batch.num_rows
            self._changed.notify_all()
        return done

    def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.floating]) -> Future[int]:
        """Set priorities; of a key that is set several times on the way the last one counts.

        Args:
            keys: [K].
            priorities: [K] >= 0.

        Returns:
            Done with how many keys were there, of all that went with the same call; or with its error.
        """
        done: Future[int] = Future()
        with self._changed:
            self._changed.wait_for(lambda: len(self._priorities) < self._max_pending_rows)
            self._priorities.append((keys, priorities, done))
            self._changed.notify_all()
        return done

    def close(self) -> None:
        """Wait until everything was answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._sending.join()
        self._lending.close()

    def _send(self) -> None:
        under_way: deque[_Call] = deque()
        with self._changed:  # a writer that nobody uses asks nothing, and needn't be waited for
            self._changed.wait_for(lambda: self._inserts or self._priorities or self._closed)
            if not (self._inserts or self._priorities):
                return
        block_rows = min(self._block_rows, _call_sizes(self._replay, self._timeout_s).inserts)
        while True:
            with self._changed:
                # what is there goes at once; without news the oldest call is waited for
                self._changed.wait_for(lambda: self._inserts or self._priorities or self._closed or under_way)
                inserts = _as_many(self._inserts, min(block_rows, self._most_rows))
                priorities, self._priorities = list(self._priorities), deque()
                if not (inserts or priorities or under_way):
                    return
                self._changed.notify_all()
            if inserts:
                under_way.append(self._start_inserts(inserts))
            if priorities:
                under_way.append(self._start_priorities(priorities))
            while under_way and (len(under_way) >= CALLS_UNDER_WAY or not (self._inserts or self._priorities)):
                self._finish(under_way.popleft())

    def _start_priorities(self, entries: list[tuple[NDArray, NDArray, Future[int]]]) -> _Call:
        keys, values = (np.concatenate([entry[i] for entry in entries]) for i in (0, 1))
        return _Call(self._replay.update_priorities.remote(keys, values), [done for *_, done in entries])

    def _start_inserts(self, entries: list[tuple[pa.RecordBatch, Future[InsertReceipt]]]) -> _Call:
        batches = [batch for batch, _ in entries]
        loan = None
        try:
            # a small batch is copied twice sooner than its columns are looked at one by one
            parts = batches if len(batches) <= FEW_BATCHES else [pa.concat_batches(batches)]
            num_bytes = sum(batch.nbytes for batch in parts)
            self._most_rows = BLOCK_BYTES * sum(batch.num_rows for batch in parts) // max(num_bytes, 1)
            loan = self._lending.lend(num_bytes)
            room = Room(loan.place, loan.memory) if loan is not None else None
            parcel = Parcel(parts[0] if len(parts) == 1 else concat_rows(parts, room.take if room is not None else lambda _: None))
        except pa.ArrowInvalid:  # one of another schema among them: each to its own error
            if loan is not None:
                loan.give_back()
            return _Call(None, [done for _, done in entries], batches)
        letter = room.put(parcel) if room is not None else None
        return _Call(self._replay.insert.remote(letter or parcel), [done for _, done in entries], batches, loan)

    def _finish(self, call: _Call) -> None:
        """Settle a call's futures; a bad row is the error of its own insert alone, so inserts that failed together go again one by one."""
        try:
            if call.reference is None:
                raise ValueError("batches of several schemas")
            result = ray.get(call.reference, timeout=self._timeout_s)
            if call.loan is not None:
                call.loan.give_back()
            for done in call.futures:
                done.set_result(result)
        except Exception as error:
            if call.loan is not None and isinstance(error, RayTaskError):  # it was answered: the actor uses the memory no more
                call.loan.give_back()
            if isinstance(error, LentMemoryError):  # the actor was started again on another node
                self._lending.close()
            if len(call.batches) > 1 or isinstance(error, LentMemoryError):
                for batch, done in zip(call.batches, call.futures, strict=True):
                    _settle(done, lambda batch=batch: ray.get(self._replay.insert.remote(Parcel(batch)), timeout=self._timeout_s))
            else:
                for done in call.futures:
                    done.set_exception(error)
        if call.batches:
            with self._changed:
                self._pending_rows -= sum(batch.num_rows for batch in call.batches)
                self._changed.notify_all()


@dataclass(frozen=True)
class _Call:
    reference: ray.ObjectRef | None  # None: it couldn't be made
    futures: list[Future]
    batches: Sequence[pa.RecordBatch] = ()  # that it carries, one a future; none: it carries priorities
    loan: Loan | None = None  # where they lie


def _as_many(inserts: deque[tuple[pa.RecordBatch, Future]], num_rows: int) -> list[tuple[pa.RecordBatch, Future]]:
    """Take from the front what makes a block, at least one."""
    taken: list[tuple[pa.RecordBatch, Future]] = []
    while inserts and (not taken or num_rows >= inserts[0][0].num_rows):
        taken.append(inserts.popleft())
        num_rows -= taken[-1][0].num_rows
    return taken


class ReplayReader:
    """Draws ahead, so that the next batch is there when it is asked for.

    What is handed out was drawn up to ``prefetch`` calls earlier: by the priorities and among the rows of then. A batch of a few rows is
    a part of a larger draw, which is made at once.

    Args:
        replay: the replay actor, of a mode that draws without a step.
        batch_size: rows of a batch.
        prefetch: calls under way.
        block: rows that one call draws at least, if these aren't too many for replay's bounds (CallSizes) or more than BLOCK_BYTES.
        timeout_s: deadline of one call to the actor.
    """

    def __init__(self, replay: ActorHandle, *, batch_size: int, prefetch: int = 2, block: int = 1024, timeout_s: float = 600.0) -> None:
        self._replay = replay
        self._draw = replay.sample.options(num_returns=2)
        self._lending = _Lending(replay, prefetch + BLOCKS_HELD, timeout_s)
        self._row_bytes = 0  # of the largest rows so far: the first call tells
        self._batch_size = batch_size
        self._prefetch = prefetch
        self._block = block
        self._timeout_s = timeout_s

    def __iter__(self) -> Iterator[pa.Table]:
        """Batches of SAMPLE_SCHEMA, without an end."""
        under_way: deque[tuple[ray.ObjectRef, Loan | None]] = deque()
        block = min(self._block, _call_sizes(self._replay, self._timeout_s).samples)
        while True:
            while len(under_way) < self._prefetch:
                under_way.append(self._ask(block))
            table = self._answer(block, *under_way.popleft())
            for start in range(0, table.num_rows, self._batch_size):
                yield table.slice(start, self._batch_size)

    def close(self) -> None:
        """Lend the replay actor no more memory; what was handed out stays whole."""
        self._lending.close()

    def _ask(self, block: int) -> tuple[ray.ObjectRef, Loan | None]:
        block = min(block, BLOCK_BYTES // self._row_bytes if self._row_bytes else FIRST_ROWS)
        num_rows = self._batch_size * max(1, block // self._batch_size)
        loan = self._lending.lend(num_rows * self._row_bytes)
        return self._draw.remote(batch_size=num_rows, into=loan.place if loan is not None else None)[1], loan

    def _answer(self, block: int, reference: ray.ObjectRef, loan: Loan | None) -> pa.Table:
        try:
            answer = ray.get(reference, timeout=self._timeout_s)
        except LentMemoryError:  # the actor was started again on another node; nothing was drawn
            self._lending.close()
            return self._answer(block, *self._ask(block))
        if isinstance(answer, Letter) and loan is not None:
            return loan.read(answer)
        if loan is not None:
            loan.give_back()
        self._row_bytes = max(self._row_bytes, -(-answer.nbytes // max(answer.num_rows, 1)))
        return answer


def _call_sizes(replay: ActorHandle, timeout_s: float) -> CallSizes:
    """How much the replay actor wants in one call; as little as can be if it can't be asked, so that whoever calls gets its error."""
    try:
        return ray.get(replay.call_sizes.remote(), timeout=timeout_s)
    except RayError:
        return CallSizes(inserts=1, samples=1)


def _settle(done: Future, call: Callable[[], Any]) -> None:
    """Give a future what the call gives."""
    try:
        done.set_result(call())
    except Exception as error:
        done.set_exception(error)

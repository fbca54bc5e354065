"""A writer and a reader for code that inserts and draws a few rows at a time.

Owns what is under way between a process and the replay actor. Must not know the buffer. A call through Ray costs about a millisecond,
whether it carries one row or hundreds: so what piles up while a call is under way goes together with the next one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle

from replay.groups import InsertReceipt


class ReplayWriter:
    """Sends inserts and priorities in the order of their calls, as many together as have piled up.

    A future is done when the replay actor has accepted what it stands for, not before.

    Args:
        replay: the replay actor.
        max_pending_rows: ``insert`` waits while so many are on their way.
        timeout_s: deadline of one call to the actor.
    """

    def __init__(self, replay: ActorHandle, *, max_pending_rows: int = 4096, timeout_s: float = 600.0) -> None:
        self._replay = replay
        self._max_pending_rows = max_pending_rows
        self._timeout_s = timeout_s
        self._inserts: deque[tuple[pa.RecordBatch, Future[InsertReceipt]]] = deque()
        self._priorities: deque[tuple[NDArray, NDArray, Future[int]]] = deque()
        self._changed = threading.Condition()
        self._pending_rows = 0
        self._closed = False
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

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inserts or self._priorities or self._closed)
                inserts, self._inserts = list(self._inserts), deque()
                priorities, self._priorities = list(self._priorities), deque()
                if not inserts and not priorities:
                    return
            if inserts:
                self._send_inserts(inserts)
                with self._changed:
                    self._pending_rows -= sum(batch.num_rows for batch, _ in inserts)
                    self._changed.notify_all()
            if priorities:
                self._send_priorities(priorities)

    def _send_priorities(self, priorities: list[tuple[NDArray, NDArray, Future[int]]]) -> None:
        keys, values = (np.concatenate([entry[i] for entry in priorities]) for i in (0, 1))
        _settle([done for *_, done in priorities], lambda: self._call(self._replay.update_priorities, keys, values))
        with self._changed:
            self._changed.notify_all()

    def _send_inserts(self, inserts: list[tuple[pa.RecordBatch, Future[InsertReceipt]]]) -> None:
        """All at once; one by one if that fails, so that a bad row is the error of its own insert alone."""
        together = inserts[0][0] if len(inserts) == 1 else pa.concat_batches([batch for batch, _ in inserts])
        try:
            receipt = self._call(self._replay.insert, together)
        except Exception as error:
            if len(inserts) == 1:
                inserts[0][1].set_exception(error)
                return
            for batch, done in inserts:
                _settle([done], lambda batch=batch: self._call(self._replay.insert, batch))
            return
        for _, done in inserts:
            done.set_result(receipt)

    def _call(self, method, *arguments):
        return ray.get(method.remote(*arguments), timeout=self._timeout_s)


class ReplayReader:
    """Draws ahead, so that the next batch is there when it is asked for.

    What is handed out was drawn up to ``prefetch`` calls earlier: by the priorities and among the rows of then. A batch of a few rows is
    a part of a larger draw, which is made at once.

    Args:
        replay: the replay actor, of a mode that draws without a step.
        batch_size: rows of a batch.
        prefetch: calls under way.
        block: rows that one call draws at least.
        timeout_s: deadline of one call to the actor.
    """

    def __init__(self, replay: ActorHandle, *, batch_size: int, prefetch: int = 2, block: int = 256, timeout_s: float = 600.0) -> None:
        self._replay = replay
        self._batch_size = batch_size
        self._prefetch = prefetch
        self._block = batch_size * max(1, block // batch_size)
        self._timeout_s = timeout_s

    def __iter__(self) -> Iterator[pa.Table]:
        """Batches of SAMPLE_SCHEMA, without an end."""
        under_way: deque = deque()
        while True:
            while len(under_way) < self._prefetch:
                under_way.append(self._replay.sample.options(num_returns=2).remote(batch_size=self._block)[1])
            table = ray.get(under_way.popleft(), timeout=self._timeout_s)
            for start in range(0, table.num_rows, self._batch_size):
                yield table.slice(start, self._batch_size)


def _settle(futures: list[Future], call) -> None:
    """Give the futures what the call gives."""
    try:
        result = call()
    except Exception as error:
        for done in futures:
            done.set_exception(error)
        return
    for done in futures:
        done.set_result(result)

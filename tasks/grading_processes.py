"""The grader processes of a pool: start, hand out comparisons, replace what dies.

Owns the processes' lives and the pipes to them. Must not know asyncio, extraction or the cache.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from tasks.grading_child import MAX_MESSAGE_BYTES, MOST_WAITING
from tasks.grading_worker import MOST_GIVEN_WAY, PLACES, POSTPONED, SET_ASIDE

START_TIMEOUT_S = 120.0
_REPLY_MARGIN_S = 30.0  # the grader process keeps the time limit itself; this much later it is taken for lost
_POLL_S = 1.0
_AHEAD = 4  # ordinary answers that a process has at hand, so that it never waits for the next
_PIPE_BYTES = 1 << 20  # a process's unread requests fit, so that handing one over never waits


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a comparison came to."""

    reason: str  # equal, partial, different, timeout, memory, died, too_long, error:...
    score: float  # in [0, 1]


@dataclass(eq=False, slots=True)
class _Order:
    message: bytes
    request_id: int
    future: Future[Outcome] = field(default_factory=Future)
    losses: int = 0  # processes that were lost with it
    slow: bool = False  # postponed, to be compared where there is a place for slow ones
    sent: float = 0.0


class GraderProcesses:
    """Compares in processes that may hang, run out of memory or die without harm to anything but the answer at fault."""

    def __init__(self, *, processes: int, timeout_s: float, memory_bytes: int) -> None:
        """Start the processes; they load in the background.

        Args:
            processes: number of them; each compares one answer at a time, and a few slow ones while it has no other.
            timeout_s: for one comparison, of the time that it is let run.
            memory_bytes: address space of one comparison.
        """
        self._settings = (timeout_s, memory_bytes)
        self._lock = threading.Lock()
        self._closed = False
        self._failure: RuntimeError | None = None
        self._waiting: deque[_Order] = deque()
        self._postponed: deque[_Order] = deque()
        self._count = 0
        self._processes: list[_Process] = []
        self._readers: list[threading.Thread] = []
        with self._lock:
            for _ in range(processes):
                self._start()

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process in self._processes]

    def submit(self, request: dict[str, Any]) -> Future[Outcome]:
        """Hand over a comparison.

        Args:
            request: candidate, gold, form and answer_type, as tasks.comparison.compare takes them.

        Returns:
            Its outcome to come.

        Raises:
            RuntimeError: when the processes were closed, or can't be started.
        """
        with self._lock:
            self._refuse_when_over()
            self._count += 1
            order = _Order(message=_message(self._count, request, slow=False), request_id=self._count)
            if len(order.message) > MAX_MESSAGE_BYTES:
                order.future.set_result(Outcome("too_long", 0.0))
                return order.future
            self._waiting.append(order)
            self._dispatch()
        return order.future

    def close(self) -> None:
        """End the processes; comparisons that still run raise. Twice is allowed."""
        with self._lock:
            self._closed = True
            orders = [*self._waiting, *self._postponed, *(order for process in self._processes for order in process.running.values())]
            self._waiting.clear()
            self._postponed.clear()
        for process in self._processes:
            process.kill()
        for reader in self._readers:
            reader.join()
        for order in orders:
            if not order.future.done():
                order.future.set_exception(RuntimeError("the grader pool was closed during a comparison"))

    def _refuse_when_over(self) -> None:
        if self._closed:
            raise RuntimeError("the grader pool is closed")
        if self._failure is not None:
            raise self._failure

    def _start(self) -> None:
        process = _Process(*self._settings)
        self._processes.append(process)
        self._readers = [reader for reader in self._readers if reader.is_alive()]
        self._readers.append(threading.Thread(target=self._read, args=(process,), name="grader", daemon=True))
        self._readers[-1].start()

    def _dispatch(self) -> None:
        """Send what waits to the processes that have the least; holds the lock."""
        while self._waiting and self._processes:
            process = min(self._processes, key=lambda process: process.num_ordinary)
            if process.num_ordinary >= _AHEAD:
                break
            process.ask(self._waiting.popleft())
        while self._postponed and self._processes:
            process = min(self._processes, key=lambda process: len(process.slow))
            if len(process.slow) >= PLACES:
                break
            process.ask(self._postponed.popleft())

    def _read(self, process: _Process) -> None:
        """Serve one process until it is gone; runs in a thread of its own."""
        ready = False
        while (reply := process.receive(ready=ready)) is not None:
            ready = True
            if not reply:
                continue
            order = self._settled(process, reply)
            if order is not None:
                order.future.set_result(Outcome(reply["reason"], reply["score"]))
        code = process.kill()
        with self._lock:
            if self._closed:
                return
            self._processes.remove(process)
            lost = list(process.running.values())
            process.running.clear()
            process.slow.clear()
            if ready:
                self._start()
            else:
                said = f"grader process {process.pid} wasn't ready within {START_TIMEOUT_S} s or ended at its start, exit code {code}"
                self._failure = RuntimeError(f"{said}; see its error output")
                lost, self._waiting, self._postponed = [*lost, *self._waiting, *self._postponed], deque(), deque()
            failed = [order for order in lost if not ready or order.losses]
            for order in reversed(lost):
                if order not in failed:  # whatever ended the process, it was more likely a neighbour; the second time it's this one
                    order.losses += 1
                    (self._postponed if order.slow else self._waiting).appendleft(order)
            self._dispatch()
        for order in failed:
            if self._failure is not None:
                order.future.set_exception(self._failure)
            else:
                order.future.set_result(Outcome("died", 0.0))

    def _settled(self, process: _Process, reply: dict[str, Any]) -> _Order | None:
        """The order that a reply is the result of; None when it tells of a slow one."""
        with self._lock:
            if reply["reason"] == SET_ASIDE:
                process.slow.add(reply["id"])
                self._dispatch()
                return None
            order = process.running.pop(reply["id"])
            process.slow.discard(reply["id"])
            if reply["reason"] == POSTPONED:
                if not order.slow:
                    order.slow, order.message = True, _message(order.request_id, json.loads(order.message), slow=True)
                self._postponed.append(order)
            self._dispatch()
            return None if reply["reason"] == POSTPONED else order


def _message(request_id: int, request: dict[str, Any], *, slow: bool) -> bytes:
    return json.dumps({**request, "id": request_id, "slow": slow}).encode()


class _Process:
    """One grader process and the pipes to it."""

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self.running: dict[int, _Order] = {}
        self.slow: set[int] = set()  # of them, set aside
        self._limit_s = _AHEAD * MOST_WAITING * timeout_s + _REPLY_MARGIN_S
        self._slow_limit_s = MOST_GIVEN_WAY * timeout_s + _REPLY_MARGIN_S
        self._begin = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tasks.grading_worker", str(timeout_s), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Untrusted input gets no secrets to find; threads of numerical libraries would only cost cores.
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": os.pathsep.join([*(path for path in sys.path if path), os.getcwd()]),
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,  # an interrupt from the keyboard is the owner's to handle
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._replies = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            fcntl.fcntl(self._requests.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:  # a user with very many pipes gets small ones; long requests then wait a little for the process
            return

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def num_ordinary(self) -> int:
        """Comparisons it has at hand that aren't slow."""
        return len(self.running) - len(self.slow)

    def ask(self, order: _Order) -> None:
        """Hand an order over; when the process is gone, its reader is about to notice and to hand it on."""
        order.sent = time.monotonic()
        self.running[order.request_id] = order
        if order.slow:
            self.slow.add(order.request_id)
        try:
            self._requests.send_bytes(order.message)
        except OSError:
            return

    def receive(self, *, ready: bool) -> dict[str, Any] | None:
        """The next reply, the empty one that it is ready first; None when the process is gone, or overdue."""
        try:
            while not self._replies.poll(_POLL_S):
                if self._overdue() if ready else time.monotonic() - self._begin > START_TIMEOUT_S:
                    return None
            reply: dict[str, Any] = json.loads(self._replies.recv_bytes())
        except (EOFError, OSError, ValueError):
            return None
        return reply

    def _overdue(self) -> bool:
        now, slow = time.monotonic(), set(self.slow)
        return any(
            now - order.sent > (self._slow_limit_s if order.request_id in slow else self._limit_s) for order in list(self.running.values())
        )

    def kill(self) -> int:
        """End it, twice is allowed; the exit code."""
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()

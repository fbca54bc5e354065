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

from tasks.grading_worker import LANES, MAX_MESSAGE_BYTES, PATIENCE_S

START_TIMEOUT_S = 120.0
_REPLY_MARGIN_S = 30.0  # the grader process keeps the time limit itself; this much later it is taken for lost
_POLL_S = 1.0
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
    sent: float = 0.0


class GraderProcesses:
    """Compares in processes that may hang, run out of memory or die without harm to anything but the answer at fault."""

    def __init__(self, *, processes: int, timeout_s: float, memory_bytes: int) -> None:
        """Start the processes; they load in the background.

        Args:
            processes: number of them; each compares one answer at a time and up to three slow ones beside it.
            timeout_s: for one comparison.
            memory_bytes: address space of one comparison.
        """
        self._settings = (timeout_s, memory_bytes)
        self._lock = threading.Lock()
        self._closed = False
        self._failure: RuntimeError | None = None
        self._waiting: deque[_Order] = deque()
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
            order = _Order(message=json.dumps({"id": self._count, **request}).encode(), request_id=self._count)
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
            orders = [*self._waiting, *(order for process in self._processes for order in process.running.values())]
            self._waiting.clear()
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
        """Send what waits to the processes with the fewest comparisons; holds the lock."""
        while self._waiting and self._processes:
            process = min(self._processes, key=lambda process: len(process.running))
            if len(process.running) >= LANES:
                return
            order = self._waiting.popleft()
            order.sent = time.monotonic()
            process.running[order.request_id] = order
            process.send(order.message)

    def _read(self, process: _Process) -> None:
        """Serve one process until it is gone; runs in a thread of its own."""
        ready = False
        while (reply := process.receive(ready=ready)) is not None:
            ready = True
            if not reply:
                continue
            with self._lock:
                order = process.running.pop(reply["id"])
                self._dispatch()
            order.future.set_result(Outcome(reply["reason"], reply["score"]))
        code = process.kill()
        with self._lock:
            if self._closed:
                return
            self._processes.remove(process)
            lost = list(process.running.values())
            process.running.clear()
            if ready:
                self._start()
            else:
                said = f"grader process {process.pid} wasn't ready within {START_TIMEOUT_S} s or ended at its start, exit code {code}"
                self._failure = RuntimeError(f"{said}; see its error output")
                lost, self._waiting = [*lost, *self._waiting], deque()
            failed = [order for order in lost if not ready or order.losses]
            for order in reversed(lost):
                if order not in failed:  # whatever ended the process, it was more likely a neighbour; the second time it's this one
                    order.losses += 1
                    self._waiting.appendleft(order)
            self._dispatch()
        for order in failed:
            if self._failure is not None:
                order.future.set_exception(self._failure)
            else:
                order.future.set_result(Outcome("died", 0.0))


class _Process:
    """One grader process and the pipes to it."""

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self.running: dict[int, _Order] = {}
        self._limit_s = timeout_s + LANES * PATIENCE_S + _REPLY_MARGIN_S
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

    def send(self, message: bytes) -> None:
        """Hand a request over; when the process is gone, its reader is about to notice and to hand it on."""
        try:
            self._requests.send_bytes(message)
        except OSError:
            return

    def receive(self, *, ready: bool) -> dict[str, Any] | None:
        """The next reply, the empty one that it is ready first; None when the process is gone, or overdue."""
        try:
            while not self._replies.poll(_POLL_S):
                now = time.monotonic()
                overdue = any(now - order.sent > self._limit_s for order in list(self.running.values()))
                if overdue if ready else now - self._begin > START_TIMEOUT_S:
                    return None
            reply: dict[str, Any] = json.loads(self._replies.recv_bytes())
        except (EOFError, OSError, ValueError):
            return None
        return reply

    def kill(self) -> int:
        """End it, twice is allowed; the exit code."""
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()

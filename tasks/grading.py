"""Grades responses against gold answers, without ever blocking an event loop or trusting a response.

Owns the grader processes' lives, the cache and the counts. Must not know rewards or trajectories.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue

from tasks.equivalence import normalized, shortcut
from tasks.extraction import lenient_candidates, strict_answer

MAX_ANSWER_CHARS = 1000  # longer ones are no answers; a longer gold answer raises the limit to four times its length
_CACHE_SIZE = 65536
_START_TIMEOUT_S = 120.0
_REPLY_MARGIN_S = 30.0  # the grader process keeps the time limit itself; this much later it is taken for lost
_LONG_RESPONSE_CHARS = 20000  # longer ones are searched in a thread

_Key = tuple[str, str, bool]  # candidate, gold, whether the candidate is running text


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """Whether a response is right, by both extraction modes."""

    strict: bool
    lenient: bool
    reason: str  # of the lenient mode: equal, different (or not parsable), no_answer, too_long, timeout, memory, died, error:...


class GraderPool:
    """Grades with a few processes that may hang, run out of memory or die without harm to anything but the answer at fault.

    Usable from any thread and event loop.
    """

    def __init__(self, *, processes: int, timeout_s: float, memory_bytes: int) -> None:
        """Start the processes; they load in the background.

        Args:
            processes: number of grader processes.
            timeout_s: for one comparison.
            memory_bytes: address space of one process.

        Raises:
            ValueError: when a setting isn't positive.
        """
        if processes < 1 or timeout_s <= 0 or memory_bytes <= 0:
            raise ValueError(f"processes={processes}, timeout_s={timeout_s}, memory_bytes={memory_bytes}: all must be positive")
        self.counts: Counter[str] = Counter()  # graded responses by reason
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._closed = False
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, str] = OrderedDict()
        self._running: dict[_Key, Future[str]] = {}
        self._threads = ThreadPoolExecutor(max_workers=processes, thread_name_prefix="grader")
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._processes = [_Process(timeout_s, memory_bytes) for _ in range(processes)]
        for process in self._processes:
            self._idle.put(process)

    async def grade(self, response: str, gold: str) -> Grade:
        """Grade one response.

        Args:
            response: what the model wrote.
            gold: the answer, without its box.

        Returns:
            The grade; whatever goes wrong with the response makes it wrong, with a reason.

        Raises:
            RuntimeError: when the pool is closed, or its processes can't be started.
        """
        if len(response) > _LONG_RESPONSE_CHARS:
            boxed, candidates = await asyncio.to_thread(_answers, response)
        else:
            boxed, candidates = _answers(response)
        if not candidates:
            lenient = "no_answer"
        elif boxed is not None:
            lenient = await self._compare(boxed, gold, whole_response=False)
        else:
            lenient = await self._compare(candidates[0], gold, whole_response=len(candidates) == 1)
        with self._lock:
            self.counts[lenient] += 1
        return Grade(strict=boxed is not None and lenient == "equal", lenient=lenient == "equal", reason=lenient)

    async def grade_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Grade]:
        """Grade several responses.

        Args:
            responses: what the model wrote.
            golds: the answer of each.

        Returns:
            The grades, in order.

        Raises:
            ValueError: when the lengths differ.
            RuntimeError: as grade.
        """
        return list(await asyncio.gather(*(self.grade(response, gold) for response, gold in zip(responses, golds, strict=True))))

    def close(self) -> None:
        """End the processes; comparisons that still run raise."""
        with self._lock:
            self._closed = True
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)

    async def _compare(self, candidate: str, gold: str, *, whole_response: bool) -> str:
        candidate, gold = normalized(candidate), normalized(gold)
        if not candidate:
            return "no_answer"
        if len(candidate) > max(MAX_ANSWER_CHARS, 4 * len(gold)):
            return "too_long"
        same = shortcut(candidate, gold)
        if same is not None:
            return "equal" if same else "different"
        key = (candidate, gold, whole_response)
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader pool is closed")
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            future = self._running.get(key)
            if future is None:
                future = self._running[key] = self._threads.submit(self._ask, key)
        # Shielded, because the samples of a group wait for the same comparison and one of them may be cancelled.
        return await asyncio.shield(asyncio.wrap_future(future))

    def _ask(self, key: _Key) -> str:
        """Have a process compare; runs in a thread, of which there are as many as processes."""
        process = self._idle.get()
        try:
            reason = process.ask(key)
        except (EOFError, OSError, TimeoutError):
            process.kill()
            process = self._replace(process)
            reason = "died"
        finally:
            self._idle.put(process)
            with self._lock:
                self._running.pop(key, None)
        if reason in ("equal", "different"):  # other outcomes may be the machine's fault and are tried again next time
            with self._lock:
                self._known[key] = reason
                if len(self._known) > _CACHE_SIZE:
                    self._known.popitem(last=False)
        return reason

    def _replace(self, lost: _Process) -> _Process:
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader pool was closed during a comparison")
            new = _Process(self._timeout_s, self._memory_bytes)
            self._processes[self._processes.index(lost)] = new
        return new


class _Process:
    """One grader process and the pipes to it; used by one thread at a time."""

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._ready = False
        paths = [path for path in sys.path if path]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tasks.grading_worker", str(timeout_s), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Untrusted input gets no secrets to find; threads of numerical libraries would only cost cores.
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # an interrupt from the keyboard is the owner's to handle
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._replies = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._process.stdin.close()
        self._process.stdout.close()

    def ask(self, key: _Key) -> str:
        """The outcome of a comparison.

        Raises:
            EOFError, OSError: when the process is gone.
            TimeoutError: when it doesn't answer although it keeps the time limit itself.
            RuntimeError: when it can't be started.
        """
        if not self._ready:
            self._wait_until_ready()
        candidate, gold, whole_response = key
        self._requests.send_bytes(json.dumps({"candidate": candidate, "gold": gold, "whole_response": whole_response}).encode())
        if not self._replies.poll(self._timeout_s + _REPLY_MARGIN_S):
            raise TimeoutError(f"grader process {self._process.pid} gave no reply")
        return str(json.loads(self._replies.recv_bytes())["reason"])

    def kill(self) -> None:
        """End it; twice is allowed."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _wait_until_ready(self) -> None:
        try:
            if not self._replies.poll(_START_TIMEOUT_S):
                raise RuntimeError(f"grader process {self._process.pid} wasn't ready after {_START_TIMEOUT_S} s")
            self._replies.recv_bytes()
        except EOFError:
            code = self._process.wait()
            raise RuntimeError(f"grader process {self._process.pid} ended at its start, exit code {code}; see its error output") from None
        self._ready = True


def _answers(response: str) -> tuple[str | None, list[str]]:
    return strict_answer(response), lenient_candidates(response)

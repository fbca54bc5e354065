"""The process in which untrusted answers are compared; started by tasks.grading_processes, never imported by it.

A parent process imports math-verify (and the scorers that users name) once and forks children that do the work. When an answer hangs,
exhausts memory or crashes, only its child dies and a new one is there within milliseconds. An answer that takes long is set aside: its
child goes on at the lowest priority until the time limit, while another child takes the next answers. Messages are JSON, so that a
child can't do harm by what it answers. Must not know asyncio, rewards or responses.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from algorithms.types import AnswerType
from tasks.comparison import ScoreError, compare
from tasks.errors import DataError
from tasks.plugins import load_function

MAX_MESSAGE_BYTES = 1 << 18
LANES = 4  # answers under way in one process; all but one of them have been set aside as slow
PATIENCE_S = 0.2  # after which an answer is slow; ordinary ones take a few milliseconds
_IDLE_POLL_S = 5.0  # how soon an orphan notices that its owner is gone
_ANSWERS_PER_CHILD = 5000  # the algebra system's caches grow; a new child starts with small ones
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LOWEST_PRIORITY = 19


def main(timeout_s: float, memory_bytes: int) -> None:
    """Serve comparisons from standard input to standard output until the input ends.

    Args:
        timeout_s: for one comparison.
        memory_bytes: address space of one child.
    """
    requests, replies = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    logging.disable(logging.CRITICAL)
    compare("\\frac{1}{2}", "0.25+0.25", AnswerType(), form="boxed")  # loads the grammar before the first fork
    gc.freeze()
    owner = os.getppid()
    replies.send_bytes(b"{}")
    os.dup2(nothing, 2)
    lanes = _Lanes(requests, replies, timeout_s=timeout_s, memory_bytes=memory_bytes)
    try:
        while os.getppid() == owner:
            lanes.step()
    except (EOFError, OSError):  # the owner closed its ends
        return
    finally:
        lanes.close()


class _Lanes:
    """The children of one grader process and what they are at."""

    def __init__(self, requests: Connection, replies: Connection, *, timeout_s: float, memory_bytes: int) -> None:
        self._requests, self._replies = requests, replies
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._idle: _Child | None = None
        self._busy: list[_Child] = []
        self._scorers: set[str] = set()

    def step(self) -> None:
        """Wait for a request, a reply or a limit, and act on it.

        Raises:
            EOFError, OSError: when the owner is gone.
        """
        takes = len(self._busy) < LANES and all(child.slow for child in self._busy)
        sources: list[Any] = [child.pipe for child in self._busy] + ([self._requests] if takes else [])
        limits = [child.started + (self._timeout_s if child.slow else min(PATIENCE_S, self._timeout_s)) for child in self._busy]
        ready = wait(sources, max(0.0, min(limits) - time.monotonic()) if limits else _IDLE_POLL_S)
        for child in [child for child in self._busy if child.pipe in ready]:
            self._finish(child)
        if self._requests in ready:
            self._take(self._requests.recv_bytes(MAX_MESSAGE_BYTES))
        now = time.monotonic()
        for child in list(self._busy):
            if now - child.started >= self._timeout_s:
                self._drop(child, "timeout")
            elif not child.slow and now - child.started >= PATIENCE_S:
                child.set_aside()

    def close(self) -> None:
        """Kill the children."""
        for child in (*self._busy, *([self._idle] if self._idle else [])):
            child.kill()

    def _take(self, message: bytes) -> None:
        request = json.loads(message)
        scorer = request["answer_type"]["scorer"]
        if scorer and scorer not in self._scorers:
            self._load(scorer)
        child, self._idle = self._idle or _Child(self._memory_bytes, close=self._open_ends()), None
        self._busy.append(child)
        try:
            child.ask(request["id"], message)
        except OSError:
            self._drop(child, "died")

    def _finish(self, child: _Child) -> None:
        try:
            reply = json.loads(child.pipe.recv_bytes(MAX_MESSAGE_BYTES))
        except (EOFError, OSError):
            self._drop(child, "died")
            return
        self._reply(child.request_id, str(reply["reason"]), float(reply["score"]))
        self._busy.remove(child)
        if child.slow or child.answers >= _ANSWERS_PER_CHILD or reply["reason"] == "memory" or self._idle is not None:
            child.kill()
        else:
            self._idle = child

    def _drop(self, child: _Child, reason: str) -> None:
        child.kill()
        self._busy.remove(child)
        self._reply(child.request_id, reason, 0.0)

    def _reply(self, request_id: int, reason: str, score: float) -> None:
        self._replies.send_bytes(json.dumps({"id": request_id, "reason": reason, "score": score}).encode())

    def _load(self, scorer: str) -> None:
        """Import a scorer here once; a child that was forked before would import it for itself alone."""
        self._scorers.add(scorer)
        with contextlib.suppress(DataError):  # the child meets the same error, and its reply counts it
            load_function(scorer)
        if self._idle is not None:
            self._idle.kill()
            self._idle = None

    def _open_ends(self) -> list[Connection]:
        return [self._requests, self._replies, *(child.pipe for child in self._busy)]


class _Child:
    """A forked process that compares until it is killed."""

    def __init__(self, memory_bytes: int, *, close: list[Connection]) -> None:
        self.pipe, theirs = Pipe()
        self.slow = False
        self.started = 0.0
        self.answers = 0
        self.request_id = -1
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for connection in (self.pipe, *close):
                    connection.close()
                _confine(memory_bytes)
                _compare_for_ever(theirs)
            finally:
                os._exit(1)
        theirs.close()

    def ask(self, request_id: int, message: bytes) -> None:
        self.request_id, self.started = request_id, time.monotonic()
        self.answers += 1
        self.pipe.send_bytes(message)

    def set_aside(self) -> None:
        self.slow = True
        os.setpriority(os.PRIO_PROCESS, self._pid, _LOWEST_PRIORITY)

    def kill(self) -> None:
        self.pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _confine(memory_bytes: int) -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _compare_for_ever(pipe: Connection) -> None:
    while True:
        try:
            request = json.loads(pipe.recv_bytes(MAX_MESSAGE_BYTES))
        except EOFError:
            return
        answer_type = request["answer_type"]
        answer_type["options"] = tuple(answer_type["options"])
        score = 0.0
        try:
            score = compare(request["candidate"], request["gold"], AnswerType(**answer_type), form=request["form"])
            reason = "equal" if score == 1.0 else "partial" if score else "different"
        except MemoryError:
            reason = "memory"
        except ScoreError:
            reason = "error:score"
        except Exception as error:  # any error of the algebra system is this answer's own; its kind goes into the counts
            reason = f"error:{type(error).__name__}"
        pipe.send_bytes(json.dumps({"reason": reason, "score": score}).encode())


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

"""The process in which untrusted answers are compared; started by tasks.grading, never imported by it.

A parent process imports math-verify once and forks a child that does the work. When an answer hangs, exhausts memory or
crashes, only the child dies and a new one is there within milliseconds. Messages are JSON, so that a child can't do
harm by what it answers. Must not know asyncio, rewards or responses.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection, Pipe

from tasks.equivalence import equivalent

MAX_MESSAGE_BYTES = 1 << 20
_IDLE_POLL_S = 5.0  # how soon an orphan notices that its owner is gone
_ANSWERS_PER_CHILD = 5000  # the algebra system's caches grow; a new child starts with small ones
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def main(timeout_s: float, memory_bytes: int) -> None:
    """Serve comparisons from standard input to standard output until the input ends.

    Args:
        timeout_s: for one comparison.
        memory_bytes: address space of the process that compares.
    """
    requests, replies = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    logging.disable(logging.CRITICAL)
    equivalent("\\frac{1}{2}", "0.25+0.25", whole_response=False)  # loads the grammar before the first fork
    gc.freeze()
    owner = os.getppid()
    replies.send_bytes(b"ready")
    os.dup2(nothing, 2)
    child: _Child | None = None
    try:
        while True:
            if not requests.poll(_IDLE_POLL_S):
                if os.getppid() != owner:
                    return
                continue
            try:
                request = requests.recv_bytes(MAX_MESSAGE_BYTES)
            except (EOFError, OSError):
                return
            if child is None:
                child = _Child(memory_bytes, close=(requests, replies))
            reply, alive = child.ask(request, timeout_s)
            if not alive:
                child.kill()
                child = None
            replies.send_bytes(reply)
    finally:
        if child is not None:
            child.kill()


class _Child:
    """A forked process that compares until it is killed."""

    def __init__(self, memory_bytes: int, *, close: tuple[Connection, ...]) -> None:
        self._pipe, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._pipe.close()
                for connection in close:
                    connection.close()
                _confine(memory_bytes)
                _compare_for_ever(theirs)
            finally:
                os._exit(1)
        theirs.close()
        self._answers = 0

    def ask(self, request: bytes, timeout_s: float) -> tuple[bytes, bool]:
        """The reply, and whether this child can be asked again."""
        self._answers += 1
        try:
            self._pipe.send_bytes(request)
            if not self._pipe.poll(timeout_s):
                return _reply("timeout"), False
            reply = self._pipe.recv_bytes(MAX_MESSAGE_BYTES)
        except (EOFError, OSError):
            return _reply("died"), False
        return reply, self._answers < _ANSWERS_PER_CHILD and json.loads(reply)["reason"] != "memory"

    def kill(self) -> None:
        self._pipe.close()
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
        try:
            same = equivalent(request["candidate"], request["gold"], whole_response=request["whole_response"])
            reply = _reply("equal" if same else "different")
        except MemoryError:
            reply = _reply("memory")
        except Exception as error:  # any error of the algebra system is this answer's own; its kind goes into the counts
            reply = _reply(f"error:{type(error).__name__}")
        pipe.send_bytes(reply)


def _reply(reason: str) -> bytes:
    return json.dumps({"reason": reason}).encode()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

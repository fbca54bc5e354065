"""The forked process in which one untrusted answer after the other is compared, and its parent's handle to it.

Owns what confines the process and what it is asked and answers. Must not know which answer comes next, nor who waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

from algorithms.types import AnswerType
from tasks.comparison import ScoreError, compare

MAX_MESSAGE_BYTES = 1 << 18
MOST_WAITING = 3.0  # time limits by the clock, on a machine whose processors are busy with something else
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LOWEST_PRIORITY = 19
_PROCESSOR_CLOCK = 2  # CPUCLOCK_SCHED of a process, see clock_getcpuclockid(3)


class Child:
    """A forked process that compares until it is killed.

    Its time is counted in seconds that it was let run; those that it gave way to others are left out.
    """

    def __init__(self, memory_bytes: int, *, close: Sequence[Connection], rehearse: Callable[[], None] = lambda: None) -> None:
        """Fork.

        Args:
            memory_bytes: its address space.
            close: connections of the parent that it must not hold open.
            rehearse: what it does before its first answer.
        """
        self.pipe, theirs = Pipe()
        self.request_id = -1
        self.scorer = ""
        self.lowered = False
        self.answers = 0
        self._started = self._gave_way_s = self._processor_before_s = self._waited_before_s = 0.0
        self._stopped_at: float | None = None
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for connection in (self.pipe, *close):
                    connection.close()
                _confine(memory_bytes)
                with contextlib.suppress(MemoryError):  # it is the answers that are told what they lack
                    rehearse()
                _compare_for_ever(theirs)
            finally:
                os._exit(1)
        theirs.close()

    def ask(self, request: dict[str, Any], message: bytes) -> None:
        """Hand over a comparison.

        Args:
            request: id, slow, candidate, gold, form and answer_type.
            message: the same as JSON.

        Raises:
            OSError: when the process is gone.
        """
        self.request_id, self.scorer = request["id"], request["answer_type"]["scorer"]
        self._started, self._gave_way_s = time.monotonic(), 0.0
        self._processor_before_s, self._waited_before_s = self._processor_clock_s(), self._waited_s()
        self.answers += 1
        self.pipe.send_bytes(message)

    def answer(self) -> tuple[str, float]:
        """What the comparison came to, which is there to be read: reason and score.

        Raises:
            EOFError, OSError: when the process is gone.
        """
        reply = json.loads(self.pipe.recv_bytes(MAX_MESSAGE_BYTES))
        return str(reply["reason"]), float(reply["score"])

    def is_past(self, limit_s: float) -> bool:
        """Whether it has had its time, in which waiting for a processor isn't counted, up to some limits by the clock."""
        had_s = self.had_s()
        return had_s >= limit_s and (had_s >= MOST_WAITING * limit_s or self.used_s() >= limit_s)

    def used_s(self) -> float:
        """Of the time that it was let run, what it had a processor or waited for something else than one."""
        return self.had_s() - (self._waited_s() - self._waited_before_s)

    def had_s(self) -> float:
        """Time by the clock that this comparison was let run."""
        now = time.monotonic() if self._stopped_at is None else self._stopped_at
        return now - self._started - self._gave_way_s

    def gave_way_s(self) -> float:
        """Time by the clock that it was stopped."""
        return self._gave_way_s + (0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at)

    def processor_s(self) -> float:
        """Time of a processor that this comparison has taken."""
        return self._processor_clock_s() - self._processor_before_s

    def let_run(self, allowed: bool) -> None:
        """Stop it where it is, or let it go on; a stop takes no privilege to undo, which a priority does."""
        if allowed and self._stopped_at is not None:
            self._gave_way_s, self._stopped_at = self.gave_way_s(), None
            os.kill(self._pid, signal.SIGCONT)
        elif not allowed and self._stopped_at is None:
            os.kill(self._pid, signal.SIGSTOP)
            self._stopped_at = time.monotonic()

    def lower(self) -> None:
        """Give it the lowest priority, for good."""
        self.lowered = True
        os.setpriority(os.PRIO_PROCESS, self._pid, _LOWEST_PRIORITY)

    def kill(self) -> None:
        """End it."""
        self.pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _waited_s(self) -> float:
        """Time that it was ready to run while all processors were busy, since its fork."""
        try:
            with open(f"/proc/{self._pid}/schedstat") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError):  # a kernel without it: the clock alone counts
            return self._waited_before_s

    def _processor_clock_s(self) -> float:
        try:
            return time.clock_gettime((~self._pid << 3) | _PROCESSOR_CLOCK)
        except OSError:  # it has just ended, which its pipe is about to tell
            return self._processor_before_s


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

r"""The process in which untrusted answers are compared; started by tasks.grading_processes, never imported by it but for its constants.

It imports math-verify (and the scorers that users name) once and forks children that do the work, some of them more than are at work, so
that the next answer never waits for a fork. When an answer hangs, exhausts memory or crashes, only its child dies. An answer that takes
long is set aside: the next one starts in the spare child at once, and the slow one goes on whenever this process has no ordinary answer to
compare. When all places for slow ones are taken, it is given back to be compared again when there is one. Messages are JSON, so that a
child can't do harm by what it answers. Must not know asyncio, rewards or responses.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from algorithms.types import AnswerType
from tasks.comparison import compare
from tasks.errors import DataError
from tasks.grading_child import MAX_MESSAGE_BYTES, Child
from tasks.plugins import load_function

PLACES = 4  # for slow answers, in one process
MOST_GIVEN_WAY = 70  # time limits by the clock that a slow answer may take at most, while others come without a pause
SET_ASIDE, POSTPONED = "set aside", "postponed"  # replies that are no results

_PATIENCE_S = 0.015  # of a processor, after which an answer is slow, or more where ordinary ones (4 ms) take longer
_PATIENCE_IDLE_S = 0.2  # more, for what waits for something else than a processor
_PATIENCE_IN_USUAL_TIMES = 4.0  # on a slower machine, or for a scorer that always takes longer
_PATIENCE_WITHOUT_A_PLACE = 4.0  # times as much, since what was done so far is lost then
_USUAL_WEIGHT = 0.1  # of the newest answer in what is usual
_QUIET_S = 0.02  # without an ordinary answer, before slow ones go on; on a busy machine the next one takes a while to come
_LEAST_SHARE = 0.05  # of the time, for a slow answer that has given way for a whole time limit
_FULL_PRIORITY_SHARE = 0.2  # of its limit that a slow answer has a processor at the ordinary priority
_SHORTEST_POLL_S = 0.002
_IDLE_POLL_S = 5.0  # how soon an orphan notices that its owner is gone
_ANSWERS_PER_CHILD = 5000  # the algebra system's caches grow; a new child starts with small ones
_READY_CHILDREN = 3  # with their memory in use, which a new child's first answers would wait for; a burst of hung answers takes one each

# What the algebra system learns from these (imports, tables of its grammar), children have from their first answer on.
_REHEARSAL = (
    (r"\frac{1}{2}", "0.25+0.25"),
    (r"\frac{34}{51}", r"\frac{2}{3}"),
    (r"3\sqrt{5}", r"\sqrt{45}"),
    (r"\sqrt[3]{8}", "2"),
    ("x^2+3x+2", "2+3x+x^2"),
    ("(x+1)(x-2)", "x^2-x-2"),
    ("y = 2x - 1", "y=2x-1"),
    ("(1, 2)", "(1,2)"),
    (r"(1,2)\cup[3,\infty)", r"[3,\infty)\cup(1,2)"),
    (r"\{1, 2\}", r"\{2,1\}"),
    ("x < 3", "x<3"),
    (r"2\pi", r"\pi \cdot 2"),
    (r"\sin(x)+\cos(x)", r"\cos(x)+\sin(x)"),
    ("2^{10}", "1024"),
    (r"\log_2 8", "3"),
    (r"30^\circ", "30"),
    (r"5\%", "0.05"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"5\text{ cm}", "5"),
)


def main(timeout_s: float, memory_bytes: int) -> None:
    """Serve comparisons from standard input to standard output until the input ends.

    Args:
        timeout_s: for one comparison, of the time that it is let run.
        memory_bytes: address space of one child.
    """
    requests, replies = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    logging.disable(logging.CRITICAL)
    rehearse()
    gc.collect()
    gc.freeze()
    owner = os.getppid()
    lanes = Lanes(requests, replies, timeout_s=timeout_s, memory_bytes=memory_bytes)
    replies.send_bytes(b"{}")
    os.dup2(nothing, 2)
    try:
        while os.getppid() == owner:
            lanes.step()
    except (EOFError, OSError):  # the owner closed its ends
        return
    finally:
        lanes.close()


def rehearse() -> None:
    """Compare typical answers."""
    for candidate, gold in _REHEARSAL:
        compare(candidate, gold, AnswerType(), form="boxed")


class Lanes:
    """The children of one grader process: one at work on an ordinary answer, some on slow ones, and ready ones."""

    def __init__(self, requests: Connection, replies: Connection, *, timeout_s: float, memory_bytes: int) -> None:
        self._requests, self._replies = requests, replies
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._ordinary: Child | None = None
        self._slow: list[Child] = []
        self._ready: list[Child] = []
        self._last_ordinary = 0.0
        self._scorers: set[str] = set()
        self._usual_s: dict[str, float] = defaultdict(float)  # of a processor, by scorer; "" is the algebra system
        for _ in range(_READY_CHILDREN):
            self._spare(rehearse)

    def step(self) -> None:
        """Wait for a request, a reply or a limit, and act on it.

        Raises:
            EOFError, OSError: when the owner is gone.
        """
        busy = self._busy()
        sources: list[Any] = [child.pipe for child in busy]
        if self._ordinary is None:
            sources.append(self._requests)
        ready = wait(sources, self._until_the_next_look())
        for child in busy:
            if child.pipe in ready:
                self._finish(child)
        if self._ordinary is None and (self._requests in ready or self._requests.poll()):
            self._take(self._requests.recv_bytes(MAX_MESSAGE_BYTES))
        for child in self._busy():
            if child.is_past(self._timeout_s):
                self._drop(child, "timeout")
        if self._ordinary is not None and self._is_slow(self._ordinary):
            self._set_aside(self._ordinary)
        self._share_the_processor()
        if not self._ready and (self._ordinary is not None or not self._requests.poll()):
            self._spare()
        elif len(self._ready) < _READY_CHILDREN and self._is_quiet():
            self._spare(rehearse)

    def close(self) -> None:
        """Kill the children."""
        for child in (*self._busy(), *self._ready):
            child.kill()

    def _busy(self) -> list[Child]:
        return [*([self._ordinary] if self._ordinary else []), *self._slow]

    def _until_the_next_look(self) -> float:
        """Seconds until a limit may have been passed."""
        looks = [self._timeout_s - child.had_s() for child in self._busy() if child.had_s() < self._timeout_s]
        if self._ordinary is not None:
            processor_s, idle_s = self._patience(self._ordinary)
            looks += [processor_s - self._ordinary.processor_s(), idle_s - self._ordinary.used_s()]
        elif self._slow or len(self._ready) < _READY_CHILDREN:
            looks.append(max(self._last_ordinary + _QUIET_S - time.monotonic(), 0.0) or self._timeout_s / 10)
        return max(min(looks), _SHORTEST_POLL_S) if looks else _IDLE_POLL_S

    def _patience(self, child: Child) -> tuple[float, float]:
        """Until an answer is slow: seconds of a processor, and of those together with waiting for anything but a processor."""
        times = 1.0 if len(self._slow) < PLACES else _PATIENCE_WITHOUT_A_PLACE
        processor_s = times * max(_PATIENCE_S, _PATIENCE_IN_USUAL_TIMES * self._usual_s[child.scorer])
        return min(processor_s, self._timeout_s / 2), min(times * _PATIENCE_IDLE_S + processor_s, self._timeout_s / 2)

    def _is_slow(self, child: Child) -> bool:
        processor_s, idle_s = self._patience(child)
        return child.processor_s() >= processor_s or child.used_s() >= idle_s

    def _set_aside(self, child: Child) -> None:
        """Let the next answer go first."""
        self._ordinary, self._last_ordinary = None, time.monotonic()
        if len(self._slow) < PLACES:
            self._slow.append(child)
            self._reply(child.request_id, SET_ASIDE)
        else:
            child.kill()
            self._reply(child.request_id, POSTPONED)

    def _share_the_processor(self) -> None:
        """Stop slow answers while there are ordinary ones, and let them go on when there are none."""
        quiet = self._is_quiet()
        for child in self._slow:
            # Where ordinary ones come without a pause, slow ones would wait for ever. What they can't use on a busy machine is no share.
            child.let_run(quiet or child.used_s() < _LEAST_SHARE * (child.gave_way_s() - self._timeout_s))
            if not child.lowered and child.processor_s() >= _FULL_PRIORITY_SHARE * self._timeout_s:
                child.lower()

    def _is_quiet(self) -> bool:
        """Whether no ordinary answer has come for a while."""
        return self._ordinary is None and time.monotonic() - self._last_ordinary >= _QUIET_S

    def _take(self, message: bytes) -> None:
        request = json.loads(message)
        if request["slow"] and len(self._slow) >= PLACES:  # one was set aside while this was on its way
            self._reply(request["id"], POSTPONED)
            return
        scorer = request["answer_type"]["scorer"]
        if scorer and scorer not in self._scorers:
            self._load(scorer)
        if not self._ready:
            self._spare()
        child = self._ready.pop()
        if request["slow"]:
            self._slow.append(child)
        else:
            self._ordinary = child
        try:
            child.ask(request, message)
        except OSError:
            self._drop(child, "died")

    def _finish(self, child: Child) -> None:
        try:
            reason, score = child.answer()
        except (EOFError, OSError):
            self._drop(child, "died")
            return
        self._learn_what_is_usual(child)
        self._reply(child.request_id, reason, score)
        self._forget(child)
        if child.lowered or child.answers >= _ANSWERS_PER_CHILD or reason == "memory" or len(self._ready) >= _READY_CHILDREN:
            child.kill()
        else:
            child.let_run(True)
            self._ready.append(child)

    def _learn_what_is_usual(self, child: Child) -> None:
        """Move the mean; one that took very long counts as slow and no more, so that it takes many of them to change what slow is."""
        usual_s = self._usual_s[child.scorer]
        taken_s = min(child.processor_s(), max(_PATIENCE_S, _PATIENCE_IN_USUAL_TIMES * usual_s))
        self._usual_s[child.scorer] = usual_s + _USUAL_WEIGHT * (taken_s - usual_s)

    def _drop(self, child: Child, reason: str) -> None:
        child.kill()
        self._forget(child)
        self._reply(child.request_id, reason)

    def _forget(self, child: Child) -> None:
        if child is self._ordinary:
            self._ordinary, self._last_ordinary = None, time.monotonic()
        else:
            self._slow.remove(child)

    def _reply(self, request_id: int, reason: str, score: float = 0.0) -> None:
        self._replies.send_bytes(json.dumps({"id": request_id, "reason": reason, "score": score}).encode())

    def _load(self, scorer: str) -> None:
        """Import a scorer here once; a child that was forked before would import it for itself alone."""
        self._scorers.add(scorer)
        with contextlib.suppress(DataError):  # the child meets the same error, and its reply counts it
            load_function(scorer)
        for child in self._ready:
            child.kill()
        self._ready.clear()

    def _spare(self, rehearsal: Callable[[], None] = lambda: None) -> None:
        ends = [self._requests, self._replies, *(child.pipe for child in (*self._busy(), *self._ready))]
        self._ready.append(Child(self._memory_bytes, close=ends, rehearse=rehearsal))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

"""Grades responses against gold answers, without ever blocking an event loop or trusting a response.

Owns extraction's use, the cache and the counts. Must not know rewards or trajectories, nor how the processes live.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from algorithms.types import AnswerType
from tasks.comparison import Form, decide
from tasks.equivalence import normalized
from tasks.extraction import lenient_candidates, strict_answer
from tasks.grading_processes import GraderProcesses, Outcome

MAX_ANSWER_CHARS = 1000  # longer ones are no answers; a longer gold answer raises the limit to four times its length
FREE = AnswerType()
_CACHE_SIZE = 65536
_LONG_RESPONSE_CHARS = 20000  # longer ones are searched in a thread

_Key = tuple[str, str, Form, AnswerType]  # candidate, gold, where the candidate stood


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """Whether a response is right, by both extraction modes."""

    strict: bool
    lenient: bool
    reason: str  # of the lenient mode: equal, partial, different (or not parsable), no_answer, too_long, timeout, memory, died, error:...
    strict_score: float = 0.0  # in [0, 1]; 1 where strict, and between 0 and 1 where a user's scorer gives partial credit
    lenient_score: float = 0.0


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
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, Outcome] = OrderedDict()
        self._running: dict[_Key, Future[Outcome]] = {}
        self._processes = GraderProcesses(processes=processes, timeout_s=timeout_s, memory_bytes=memory_bytes)

    @property
    def pids(self) -> list[int]:
        """Of the grader processes."""
        return self._processes.pids

    async def grade(self, response: str, gold: str, answer_type: AnswerType = FREE) -> Grade:
        """Grade one response.

        Args:
            response: what the model wrote.
            gold: the answer, without its box.
            answer_type: how the two are compared.

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
            outcome = Outcome("no_answer", 0.0)
        elif boxed is not None:
            outcome = await self._compare(boxed, gold, answer_type, form="boxed")
        else:
            outcome = await self._compare(candidates[0], gold, answer_type, form="running" if len(candidates) == 1 else "marked")
        with self._lock:
            self.counts[outcome.reason] += 1
        strict_score = outcome.score if boxed is not None else 0.0
        return Grade(
            strict=strict_score == 1.0,
            lenient=outcome.score == 1.0,
            reason=outcome.reason,
            strict_score=strict_score,
            lenient_score=outcome.score,
        )

    async def grade_many(self, responses: Sequence[str], golds: Sequence[str], answer_type: AnswerType = FREE) -> list[Grade]:
        """Grade several responses.

        Args:
            responses: what the model wrote.
            golds: the answer of each.
            answer_type: of all of them.

        Returns:
            The grades, in order.

        Raises:
            ValueError: when the lengths differ.
            RuntimeError: as grade.
        """
        pairs = zip(responses, golds, strict=True)
        return list(await asyncio.gather(*(self.grade(response, gold, answer_type) for response, gold in pairs)))

    def close(self) -> None:
        """End the processes; comparisons that still run raise."""
        self._processes.close()

    async def _compare(self, candidate: str, gold: str, answer_type: AnswerType, *, form: Form) -> Outcome:
        candidate, gold = normalized(candidate), normalized(gold)
        if not candidate:
            return Outcome("no_answer", 0.0)
        if len(candidate) > max(MAX_ANSWER_CHARS, 4 * len(gold)):
            return Outcome("too_long", 0.0)
        score = decide(candidate, gold, answer_type, form=form)
        if score is not None:
            return Outcome("equal" if score else "different", score)
        key = (candidate, gold, form, answer_type)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            future = self._running.get(key)
            if future is None:
                request = {"candidate": candidate, "gold": gold, "form": form, "answer_type": dataclasses.asdict(answer_type)}
                future = self._running[key] = self._processes.submit(request)
                fresh = True
            else:
                fresh = False
        if fresh:
            future.add_done_callback(lambda done: self._keep(key, done))
        # Shielded, because the samples of a group wait for the same comparison and one of them may be cancelled.
        return await asyncio.shield(asyncio.wrap_future(future))

    def _keep(self, key: _Key, done: Future[Outcome]) -> None:
        with self._lock:
            self._running.pop(key, None)
            # other outcomes may be the machine's fault and are tried again next time
            if done.exception() is None and done.result().reason in ("equal", "partial", "different"):
                self._known[key] = done.result()
                if len(self._known) > _CACHE_SIZE:
                    self._known.popitem(last=False)


def _answers(response: str) -> tuple[str | None, list[str]]:
    return strict_answer(response), lenient_candidates(response)

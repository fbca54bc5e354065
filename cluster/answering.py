"""Handing questions to whoever can answer them, until every question has its answer.

Owns what happens when an answerer dies: its questions go to the others, and a question that answerers die of is set aside. Must not
know Ray, benchmarks or files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

DEATHS_BEFORE_SUSPICION = 2  # a question that was with so many answerers when they died is asked alone, after all others

Q = TypeVar("Q")
A = TypeVar("A")


class NobodyLeftError(RuntimeError):
    """All answerers died; what was answered until then is kept."""


@dataclass(eq=False)
class Answerer(Generic[Q, A]):
    """Somebody who answers questions, several at once; any error is taken for its death."""

    name: str
    ask: Callable[[Q], Awaitable[A]]
    alive: bool = True


@dataclass
class QuestionDesk(Generic[Q, A]):
    """Hands out questions and takes answers.

    Args:
        questions: read one by one, as they are handed out; reading may be slow and happens in a thread.
        keep: gets every answer as it arrives.
        give_up: gets a question that two answerers died of, and a third one that was asked nothing else; returns nothing.
        at_once: questions that one answerer has at a time.
    """

    questions: Iterator[Q]
    keep: Callable[[Q, A], None]
    give_up: Callable[[Q, str], None]
    at_once: int
    returned: list[tuple[Q, int]] = field(default_factory=list)  # with the number of deaths
    suspects: list[Q] = field(default_factory=list)
    running: int = 0
    exhausted: bool = False

    async def serve(self, answerers: Sequence[Answerer[Q, A]]) -> None:
        """Return when every question was answered or given up.

        Args:
            answerers: at least one; those that die are left out.

        Raises:
            NobodyLeftError: when all have died, naming the last one's error.
        """
        self._changed = asyncio.Condition()
        self._reading = asyncio.Lock()
        self._last_error: BaseException | None = None
        async with asyncio.TaskGroup() as group:
            for answerer in answerers:
                for _ in range(self.at_once):
                    group.create_task(self._work(answerer))
        await self._ask_suspects(answerers)
        if self.returned or not self.exhausted:
            raise NobodyLeftError(f"all {len(answerers)} of them died; the last one: {self._last_error}") from self._last_error

    async def _work(self, answerer: Answerer[Q, A]) -> None:
        while answerer.alive:
            taken = await self._take(answerer)
            if taken is None:
                return
            question, deaths = taken
            try:
                answer = await answerer.ask(question)
            except Exception as error:  # an answerer is another machine: whatever it raises, its questions are not lost
                self._bury(answerer, error)
                (self.suspects.append(question) if deaths + 1 >= DEATHS_BEFORE_SUSPICION else self.returned.append((question, deaths + 1)))
            else:
                self.keep(question, answer)
            finally:
                async with self._changed:
                    self.running -= 1
                    self._changed.notify_all()

    async def _take(self, answerer: Answerer[Q, A]) -> tuple[Q, int] | None:
        """The next question; None when there will be none, or the answerer has died in the meantime."""
        while answerer.alive:
            async with self._changed:
                if self.returned:
                    self.running += 1
                    return self.returned.pop()
                if self.exhausted and self.running == 0:
                    self._changed.notify_all()
                    return None
                if self.exhausted:
                    await self._changed.wait()  # for the questions that others have now and may not come back from
                    continue
                self.running += 1  # before the thread reads, so that nobody leaves in the meantime
            async with self._reading:
                question = await asyncio.to_thread(next, self.questions, None) if not self.exhausted else None
            if question is not None:
                return question, 0
            async with self._changed:
                self.exhausted = True
                self.running -= 1
                self._changed.notify_all()
        return None

    async def _ask_suspects(self, answerers: Sequence[Answerer[Q, A]]) -> None:
        """One by one, so that a death has one cause."""
        for position, question in enumerate(self.suspects):
            answerer = next((answerer for answerer in answerers if answerer.alive), None)
            if answerer is None:
                self.returned += [(left, DEATHS_BEFORE_SUSPICION) for left in self.suspects[position:]]
                return
            try:
                self.keep(question, await answerer.ask(question))
            except Exception as error:
                self._bury(answerer, error)
                self.give_up(question, f"{DEATHS_BEFORE_SUSPICION + 1} rollout actors died while answering it, the last one of: {error}")

    def _bury(self, answerer: Answerer[Q, A], error: BaseException) -> None:
        if answerer.alive:
            logger.warning("%s is left out from now on: %s", answerer.name, error)
        answerer.alive = False
        self._last_error = error

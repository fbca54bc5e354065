"""Handing questions to whoever can answer them, until every question has its answer.

Owns what happens when an answerer dies: its questions go to the others, somebody takes its place, and a question that answerers die of
is set aside. Must not know Ray, benchmarks or files.
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
        replace: makes an answerer in the place of one that died, which may take its time, or raises when there is to be none; None: never.
    """

    questions: Iterator[Q]
    keep: Callable[[Q, A], None]
    give_up: Callable[[Q, str], None]
    at_once: int
    replace: Callable[[], Awaitable[Answerer[Q, A]]] | None = None
    returned: list[tuple[Q, int]] = field(default_factory=list)  # with the number of deaths
    suspects: list[Q] = field(default_factory=list)
    running: int = 0
    exhausted: bool = False
    _answerers: list[Answerer[Q, A]] = field(default_factory=list)
    _filling: set[asyncio.Task[None]] = field(default_factory=set)  # places of the dead

    async def serve(self, answerers: Sequence[Answerer[Q, A]]) -> None:
        """Return when every question was answered or given up.

        Args:
            answerers: those that die are left out; without any, a successor begins.

        Raises:
            NobodyLeftError: when all have died, their successors too, naming the last one's error.
        """
        self._changed = asyncio.Condition()
        self._reading = asyncio.Lock()
        self._last_error: BaseException | None = None
        async with asyncio.TaskGroup() as self._group:
            for answerer in answerers:
                self._seat(answerer)
            if not answerers:
                await self._fill_place()
        await self._ask_suspects()
        if self.returned or not self.exhausted:
            raise NobodyLeftError(f"all {len(self._answerers)} of them died; the last one: {self._last_error}") from self._last_error

    def _seat(self, answerer: Answerer[Q, A]) -> None:
        self._answerers.append(answerer)
        for _ in range(self.at_once):
            self._group.create_task(self._work(answerer))

    async def _fill_place(self) -> None:
        """Seat a successor, unless there is none or all is done before it comes."""
        if (answerer := await self._successor()) is not None:
            self._seat(answerer)

    async def _successor(self) -> Answerer[Q, A] | None:
        if self.replace is None:
            return None
        try:
            return await self.replace()
        except Exception as error:  # as with those who answer: the others go on
            logger.warning("nobody takes the place of the one that died: %s", error)
            self._last_error = error
            return None

    async def _work(self, answerer: Answerer[Q, A]) -> None:
        while answerer.alive:
            taken = await self._take(answerer)
            if taken is None:
                return
            question, deaths = taken
            try:
                answer = await answerer.ask(question)
            except Exception as error:  # an answerer is another machine: whatever it raises, its questions are not lost
                if self._bury(answerer, error) and self.replace is not None:
                    place = self._group.create_task(self._fill_place())
                    self._filling.add(place)
                    place.add_done_callback(self._filling.discard)
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
                    for place in self._filling:
                        place.cancel()  # all is answered: nobody is needed any more
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

    async def _ask_suspects(self) -> None:
        """One by one, so that a death has one cause."""
        for position, question in enumerate(self.suspects):
            answerer = next((answerer for answerer in self._answerers if answerer.alive), None) or await self._successor()
            if answerer is None:
                self.returned += [(left, DEATHS_BEFORE_SUSPICION) for left in self.suspects[position:]]
                return
            if answerer not in self._answerers:
                self._answerers.append(answerer)
            try:
                self.keep(question, await answerer.ask(question))
            except Exception as error:
                self._bury(answerer, error)
                self.give_up(question, f"{DEATHS_BEFORE_SUSPICION + 1} rollout actors died while answering it, the last one of: {error}")

    def _bury(self, answerer: Answerer[Q, A], error: BaseException) -> bool:
        """Whether it was alive until now."""
        if not answerer.alive:
            return False
        self._last_error = error
        logger.warning("%s is left out from now on: %s", answerer.name, error)
        answerer.alive = False
        return True

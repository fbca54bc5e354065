"""Requests to the engine in rounds: those of one call together and in order, so that its batches don't depend on who was faster.

Owns when a round begins. Must not know vLLM, Ray or what is sampled. In the synchronous mode this makes two runs of one seed, and a run
that was interrupted, the same bit for bit (docs/survival.md); with production running ahead it would only cost time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from actors.responses import Completion

T = TypeVar("T")

_member: ContextVar[int | None] = ContextVar("lockstep_member", default=None)


class RoundEngine(Protocol):
    """The part of the engine that rounds need (see actors.engine.RolloutEngine)."""

    async def generate(self, *prompt: Any, **settings: Any) -> list[Completion]:
        """Sample n completions of one prompt."""

    async def generate_together(self, requests: Sequence[dict[str, Any]], *, forget: bool) -> list[Coroutine[Any, Any, list[Completion]]]:
        """Let several prompts enter the engine together, in order; what is returned waits for each one's completions."""


@dataclass(kw_only=True)
class _Waiting:
    """A request that waits for its round."""

    member: int
    request: dict[str, Any]
    admitted: asyncio.Future[Coroutine[Any, Any, list[Completion]]]


class Lockstep:
    """A generator whose requests wait until every member of the company has one, or is done.

    A company is the prompts of one call. Its first round is their first responses; continuations make further rounds. Within a round,
    requests are ordered by their members' places and then by their ids.

    Args:
        engine: samples.
    """

    def __init__(self, engine: RoundEngine) -> None:
        self._engine = engine
        self._company = asyncio.Lock()
        self._active: set[int] = set()
        self._waiting: list[_Waiting] = []
        self._forget = False  # whether the next round is the first of its company
        self._launch: asyncio.Task[None] | None = None

    async def together(self, jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T | BaseException]:
        """Run jobs side by side whose requests go to the engine in rounds; companies wait for each other.

        Args:
            jobs: one a prompt, in the order of the prompts.

        Returns:
            Their results, or what they raised.
        """
        async with self._company:
            self._active, self._waiting, self._forget = set(range(len(jobs))), [], True
            return await asyncio.gather(*(self._run(number, job) for number, job in enumerate(jobs)), return_exceptions=True)

    async def generate(self, prompt_token_ids: Any, images: Any, image_hashes: Any, **settings: Any) -> list[Completion]:
        """As the engine's; of a member of a company, in its round."""
        member = _member.get()
        if member is None:
            return await self._engine.generate(prompt_token_ids, images, image_hashes, **settings)
        request = {"prompt_token_ids": prompt_token_ids, "images": images, "image_hashes": image_hashes, **settings}
        waiting = _Waiting(member=member, request=request, admitted=asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._look()
        return await (await waiting.admitted)

    async def _run(self, number: int, job: Coroutine[Any, Any, T]) -> T:
        _member.set(number)  # in this task and in those that the job makes
        try:
            return await job
        finally:
            self._active.discard(number)
            self._look()

    def _look(self) -> None:
        """Begin a round when nobody is left who may still have a request for it."""
        if self._launch is None and self._waiting and self._active <= {waiting.member for waiting in self._waiting}:
            self._launch = asyncio.ensure_future(self._go())

    async def _go(self) -> None:
        await asyncio.sleep(0)  # a member's further requests come in the same turn of the event loop
        batch = sorted(self._waiting, key=lambda waiting: (waiting.member, waiting.request["request_id"]))
        self._waiting, self._launch = [], None
        forget, self._forget = self._forget, False
        try:
            answers = await self._engine.generate_together([waiting.request for waiting in batch], forget=forget)
        except BaseException as error:
            for waiting in batch:
                if not waiting.admitted.done():
                    waiting.admitted.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.admitted.done():  # its caller was cancelled
                answer.close()
            else:
                waiting.admitted.set_result(answer)

"""The desk of a run: where the driver posts how it is and commands leave what they ask for.

Owns the exchange. Must not know what a status holds or how a request is carried out (cluster.train). The desk keeps nothing that the run
needs: when it is lost, the next post fills it again, and whoever asked is told that no answer came.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.waiting import answer_within

logger = logging.getLogger(__name__)

POST_S = 0.5  # between two posts: how long a command waits for the driver to see it
POST_TIMEOUT_S = 10.0
KEPT_ANSWERS = 64
NAME_TIMEOUT_S = 30.0  # for the actors of a driver that was killed to be gone


@dataclass(kw_only=True)
class Request:
    """What a command asks of a run."""

    number: int
    kind: str  # "scale", "stop"
    values: dict[str, Any]
    answer: str | None = None  # a sentence; None: the driver has not seen it yet
    refused: bool = False


class Desk:
    """What is posted and asked, in one process that outlives neither the run nor any command."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._status: dict[str, Any] | None = None
        self._posted = 0.0
        self._requests: dict[int, Request] = {}

    def exchange(self, status: dict[str, Any], answers: Mapping[int, tuple[str, bool]]) -> list[Request]:
        """The driver's side: post how the run is, answer requests, take the new ones.

        Args:
            status: JSON-able; replaces what was posted before.
            answers: number of a request -> (sentence, refused).

        Returns:
            Requests without an answer, oldest first.
        """
        self._status, self._posted = status, time.time()
        for number, (answer, refused) in answers.items():
            if number in self._requests:
                self._requests[number].answer, self._requests[number].refused = answer, refused
        for number in [n for n, request in self._requests.items() if request.answer is not None][:-KEPT_ANSWERS]:
            del self._requests[number]
        return [request for request in self._requests.values() if request.answer is None]

    def ask(self, kind: str, values: dict[str, Any]) -> int:
        """A command's side: leave a request.

        Args:
            kind: of request.
            values: that it needs.

        Returns:
            Its number, for ``answer``.
        """
        number = next(self._numbers)
        self._requests[number] = Request(number=number, kind=kind, values=values)
        return number

    def answer(self, number: int) -> dict[str, Any] | None:
        """What became of a request.

        Args:
            number: of the request.

        Returns:
            It, as a dictionary; None: the desk does not know it.
        """
        request = self._requests.get(number)
        return None if request is None else asdict(request)

    def look(self) -> dict[str, Any]:
        """How the run is.

        Returns:
            ``status`` as it was posted (None: not yet) and ``age_s``, seconds since.
        """
        return {"status": self._status, "age_s": time.time() - self._posted if self._status is not None else None}


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)
class DeskActor(Desk):
    """A desk that commands find by its name."""

    def __repr__(self) -> str:
        return "Desk"


def desk_name(run: str) -> str:
    """How a run's desk is called in the cluster.

    Args:
        run: its name.

    Returns:
        The actor's name, in the namespace of session.NAMESPACE.
    """
    return f"{run}/desk"


async def open_desk(run: str) -> ActorHandle:
    """Put up the desk of a run beside its driver.

    Args:
        run: its name.

    Returns:
        The desk, which ends with the driver.

    Raises:
        ValueError: when another run of that name is on the cluster; one that was killed takes a moment to be gone.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    deadline = time.monotonic() + NAME_TIMEOUT_S
    while True:
        try:
            return DeskActor.options(name=desk_name(run), scheduling_strategy=here).remote()
        except ValueError as taken:
            if time.monotonic() > deadline:
                raise ValueError(f"another run named {run!r} is running on this cluster; choose another run.name") from taken
            await asyncio.sleep(POST_S)


Handler = Callable[[dict[str, Any]], str]
"""Carries a request out, or begins to, and answers in a sentence; ValueError: it is refused, with the sentence."""


class DeskClerk:
    """The driver's end of the desk.

    Args:
        desk: of the run.
        describe: makes the status.
        handlers: by kind of request.
    """

    def __init__(self, desk: ActorHandle, describe: Callable[[], dict[str, Any]], handlers: Mapping[str, Handler]) -> None:
        self._desk = desk
        self._describe = describe
        self._handlers = handlers
        self._answers: dict[int, tuple[str, bool]] = {}
        self._unheard = False

    async def run(self) -> None:
        """Post and take requests until cancelled; a desk that is away costs a warning, never the run."""
        while True:
            await self.post()
            await asyncio.sleep(POST_S)

    async def post(self) -> None:
        """Post once, and see to what was asked."""
        answers, self._answers = self._answers, {}
        try:
            exchanging = self._desk.exchange.remote(self._describe(), answers)
            requests = await answer_within(exchanging, POST_TIMEOUT_S, "the run's desk to take the status")
        except (RayError, TimeoutError) as error:
            if not self._unheard:
                logger.warning("status and requests are not exchanged for now: %s", error)
            self._unheard = True
            self._answers = answers | self._answers
            return
        self._unheard = False
        for request in requests:
            self._answers[request.number] = self._carry_out(request)
        if self._answers:
            await self.post()

    def _carry_out(self, request: Request) -> tuple[str, bool]:
        handler = self._handlers.get(request.kind)
        if handler is None:
            return f"this run can't {request.kind}", True
        try:
            return handler(request.values), False
        except ValueError as refusal:
            return str(refusal), True

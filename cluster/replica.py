"""One rollout actor as the fleet sees it, and the clock of how busy all of them are."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster.deaths import Whereabouts
from cluster.waiting import answer_within


class ReplicaLostError(RuntimeError):
    """A rollout actor is out of service; the message names it and says why. What it was doing must be given to others."""


@dataclass(eq=False)
class Replica:
    """One rollout actor with its own placement group, since a placement group cannot grow."""

    index: int
    actor: ActorHandle
    placement: PlacementGroup
    slot: int = 0  # its rank among the rollout actors of the run; a successor takes it over
    place: Whereabouts | None = None  # known once the actor has started
    missed: int = 0  # heartbeats in a row without an answer
    suspect: bool = False  # it gets no new prompts while it is
    running: int = 0  # prompts handed to it and not answered
    checksum: str | None = None  # of the weights that it has answered to hold; None: those it started from
    reads_files: bool = True  # whether files of its node are its files too, which they are not between containers
    retired: bool = False  # it isn't needed any more, and is being closed
    lost: str | None = None  # why it is out of service
    _gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def node(self) -> str:
        """Ray's id; empty before the actor has started."""
        return self.place.node_id if self.place is not None else ""

    @property
    def name(self) -> str:
        """How errors and logs call it."""
        return f"rollout actor {self.index}"

    async def answer(self, reference: Any, timeout_s: float, task: str) -> Any:
        """Await an answer, but no longer than the replica is in service.

        Args:
            reference: of a call to the actor.
            timeout_s: deadline.
            task: completes "waited N s for rollout actor 0 ...".

        Returns:
            The answer.

        Raises:
            ReplicaLostError: when it has been taken out of service meanwhile, for whatever reason.
            TimeoutError: past the deadline, naming the replica.
        """
        answering = asyncio.ensure_future(answer_within(reference, timeout_s, f"{self.name} {task}"))
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self.lost is not None:
                raise ReplicaLostError(f"{self.name} is out of service: {self.lost}")
            return await answering
        finally:
            answering.cancel()
            gone.cancel()

    def end(self, reason: str) -> None:
        """Take it out of service and end its processes; whoever waits for it is told.

        Args:
            reason: for the message.
        """
        self.lost = reason
        self._gone.set()
        self.kill()

    def kill(self) -> None:
        """End the actor's processes and give its place back."""
        ray.kill(self.actor)
        remove_placement_group(self.placement)


@dataclass
class BusyClock:
    """Seconds in which at least one call was under way."""

    _running: int = 0
    _since: float = 0.0
    _total: float = 0.0

    def start(self) -> None:
        """Count a call as under way."""
        if self._running == 0:
            self._since = time.monotonic()
        self._running += 1

    def stop(self) -> None:
        """Count a call as over."""
        self._running -= 1
        if self._running == 0:
            self._total += time.monotonic() - self._since

    def take(self) -> float:
        """Read and reset.

        Returns:
            Busy seconds since the last reading.
        """
        now = time.monotonic()
        if self._running:
            self._total += now - self._since
            self._since = now
        total, self._total = self._total, 0.0
        return total

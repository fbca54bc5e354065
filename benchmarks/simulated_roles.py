"""Engines, a replay actor and a learner that take time only, on paper proportions of a 72B run: benchmarks/scale.py.

Nobody has run these proportions yet; each constant says where it comes from. Whatever the fakes compute is not charged to the driver.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.actor import RolloutReceipt
from actors.worker import RolloutRequest
from algorithms.rethinking import RethinkingCounts
from benchmarks.virtual_time import VirtualLoop
from cluster.replica import BusyClock
from cluster.transport import SyncReport

GROUP = 8  # samples of a prompt
SLOTS = 256 // GROUP  # groups that an engine samples at once
PROMPT_TOKENS, RESPONSE_TOKENS = 1500, 500  # a picture of a thousand tokens; the paper's mean response
ITERATION_BASE_S, ITERATION_SHARE_S = 0.025, 0.00005  # of a 72B engine on 8 GPUs: memory-bound, a little more for each sequence
SPREAD = 0.6  # of the logarithm of the response lengths
MAX_TOKENS = 2048
UPDATE_S_PER_TRAJECTORY = 0.09  # 6 x 72e9 x 2,000 tokens x 4/3 (checkpointing) on 32 GPUs of 4e14 useful FLOP/s
SYNC_S = 8.0  # 144 GB by broadcast
HEARTBEAT_S = 5.0


@dataclass(frozen=True)
class Costs:
    """Measured on this machine, seconds."""

    call_s: float  # of driver CPU for one rollout call and its receipt, Ray included
    beat_s: float  # the same for a heartbeat
    insert_s: float  # of the replay actor for one insert call of a group, besides its rows
    row_s: float  # of the replay actor for one more row in a call
    draw_s: float  # of the replay actor for one drawn row


class SimulatedReplay:
    """One server: inserts and draws take their measured time, one after the other; a draw waits for its groups."""

    def __init__(self, costs: Costs, loop: VirtualLoop) -> None:
        self._costs, self._loop = costs, loop
        self._arrived = 0
        self._free_at = 0.0
        self.busy_s = 0.0
        self._changed = asyncio.Event()

    async def insert(self, groups: int) -> None:
        """Groups arrive in one call."""
        await self._serve(self._costs.insert_s + groups * GROUP * self._costs.row_s)
        self._arrived += groups
        self._changed.set()

    @property
    def sample(self) -> SimulatedReplay:
        """The method whose handle is asked for options."""
        return self

    def options(self, *, num_returns: int) -> SimulatedReplay:
        """As Ray's."""
        return self

    def remote(self, **request: Any) -> tuple[Coroutine[Any, Any, dict[str, float]], str]:
        """The draw, and the rank's rows."""
        return self._draw(request["num_groups"], request["batch_size"] * request["num_updates"]), "rows"

    async def _draw(self, groups: int, rows: int) -> dict[str, float]:
        while self._arrived < groups:
            self._changed.clear()
            await self._changed.wait()
        self._arrived -= groups
        await self._serve(rows * self._costs.draw_s)
        return {}

    async def _serve(self, seconds: float) -> None:
        now = self._loop.time()
        self._free_at = max(now, self._free_at) + seconds
        self.busy_s += seconds
        await asyncio.sleep(self._free_at - now)


class SimulatedOutbox:
    """An actor's way into replay: what piles up while its last insert is under way goes together, as in actors.actor.Outbox."""

    def __init__(self, replay: SimulatedReplay) -> None:
        self._replay = replay
        self._waiting = 0
        self._inserting = asyncio.Lock()

    async def put(self) -> None:
        """A group is finished; returns when replay has it."""
        self._waiting += 1
        async with self._inserting:
            groups, self._waiting = self._waiting, 0
            if groups:
                await self._replay.insert(groups)


class SimulatedFleet:
    """Engines that take time: a group is done when the longest of its responses is, and waits while all slots are taken."""

    def __init__(self, actors: int, replay: SimulatedReplay, costs: Costs, loop: VirtualLoop) -> None:
        self._costs, self._loop = costs, loop
        self._outboxes = [SimulatedOutbox(replay) for _ in range(actors)]
        self.busy = BusyClock()
        self.absences, self.replicas = 0, [None] * actors
        self._slots = [asyncio.Semaphore(SLOTS) for _ in range(actors)]
        self._running = np.zeros(actors, dtype=np.int64)  # prompts handed to each and not answered
        self.finished = 0

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """See RolloutFleet.rollout."""
        begin = time.process_time()
        number = int(self._running.argmin())
        self._running[number] += len(requests)
        self._loop.excuse(time.process_time() - begin)
        self._loop.charge(self._costs.call_s)
        await asyncio.gather(*(self._roll_out(number, request) for request in requests))
        self._running[number] -= len(requests)
        delivered = tuple(request.group_id for request in requests)
        return RolloutReceipt(delivered=delivered, bad=(), generated_tokens=0, rethinking=RethinkingCounts(), busy_s=0.0)

    async def _roll_out(self, number: int, request: RolloutRequest) -> None:
        begin = time.process_time()
        rng = random.Random(request.seed)
        tokens = max(min(MAX_TOKENS, rng.lognormvariate(np.log(RESPONSE_TOKENS) - SPREAD**2 / 2, SPREAD)) for _ in range(GROUP))
        load = min(SLOTS, int(self._running[number])) * GROUP
        self._loop.excuse(time.process_time() - begin)
        async with self._slots[number]:
            await asyncio.sleep(tokens * (ITERATION_BASE_S + load * ITERATION_SHARE_S))
        await self._outboxes[number].put()
        self.finished += GROUP


class SimulatedLearner:
    """Updates and weight syncs that take time."""

    def __init__(self, update_s: float, fleet: SimulatedFleet) -> None:
        self._update_s, self._fleet = update_s, fleet

    async def update(self, shards: Any, *, step: int) -> dict[str, float]:
        """See LearnerGroup.update."""
        await asyncio.sleep(self._update_s)
        return {}

    async def survive(self, call: Callable[[], Awaitable[SyncReport]]) -> SyncReport:
        """See LastingLearner.survive: nothing fails here."""
        return await call()

    async def deliver(self, version: int) -> SyncReport:
        """See WeightTransport.deliver."""
        await asyncio.sleep(SYNC_S if self._update_s else 0.0)
        return SyncReport(paused_s=0.0, sent_bytes=0, num_replicas=len(self._fleet.replicas))

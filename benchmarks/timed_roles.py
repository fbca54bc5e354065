"""Engines and a learner that only take time, for what the loop around them costs: benchmarks/async.py.

The engine decodes all of its running sequences together, one token each per iteration, and an iteration takes base + running * share:
memory-bound with few sequences, saturated with many, as a real one. Time is scaled down, so that a step of half a minute takes seconds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.actor import Outbox, RolloutReceipt
from actors.worker import RolloutRequest
from algorithms.advantages import group_advantages
from algorithms.rethinking import RethinkingCounts
from algorithms.types import Prompt, RolloutGroup, Segment, Trajectory, VersionSpan
from cluster.fleet import BusyClock
from cluster.transport import SyncReport

TICK_S = 0.01  # of real time, between two looks at the running sequences


@dataclass(frozen=True)
class Proportions:
    """How long things take, in seconds of the run that is stood for."""

    name: str
    update_s: float
    sync_s: float = 1.5  # of which pause_s with paused engines
    pause_s: float = 0.5
    replicas: int = 4
    slots: int = 256  # sequences of an engine at once
    iteration_base_s: float = 0.010
    iteration_share_s: float = 0.0001
    median_tokens: int = 450
    spread: float = 0.7  # of the logarithm of the lengths
    max_tokens: int = 2048
    scale: float = 0.05  # real seconds for one of these

    def length(self, rng: random.Random) -> int:
        """A response's tokens: log-normal, cut at the limit."""
        return min(self.max_tokens, max(8, int(rng.lognormvariate(np.log(self.median_tokens), self.spread))))


@dataclass
class _Sequence:
    """A response in the making."""

    length: int
    finished: asyncio.Future[tuple[VersionSpan, ...]]
    tokens: float = 0.0
    borders: list[tuple[int, int]] = field(default_factory=list)  # first token and version of each span

    def spans(self) -> tuple[VersionSpan, ...]:
        ends = [start for start, _ in self.borders[1:]] + [self.length]
        return tuple(VersionSpan(start=s, end=e, version=v) for (s, v), e in zip(self.borders, ends, strict=True) if e > s)


class TimedEngine:
    """One engine; its sequences advance with the clock, whenever it looks at it."""

    def __init__(self, proportions: Proportions) -> None:
        self._p = proportions
        self.version = 0
        self._running: list[_Sequence] = []
        self._queue: deque[_Sequence] = deque()
        self._paused_until = 0.0
        self._clock = asyncio.create_task(self._run())

    async def generate(self, length: int) -> tuple[VersionSpan, ...]:
        """Wait for a response of so many tokens; the versions that sampled them."""
        sequence = _Sequence(length, asyncio.get_running_loop().create_future())
        self._queue.append(sequence)
        return await sequence.finished

    def update(self, version: int) -> None:
        """Pause, take a version, go on: running sequences are kept."""
        self.version = version
        self._paused_until = time.monotonic() + self._p.pause_s * self._p.scale
        for sequence in self._running:
            sequence.borders.append((int(sequence.tokens), version))

    def close(self) -> None:
        """Stop the clock."""
        self._clock.cancel()

    async def _run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            seconds, last = max(0.0, now - max(last, self._paused_until)), now
            iteration_s = self._p.iteration_base_s + len(self._running) * self._p.iteration_share_s
            advance = seconds / self._p.scale / iteration_s
            for sequence in self._running:
                sequence.tokens += advance
                if sequence.tokens >= sequence.length and not sequence.finished.done():
                    sequence.finished.set_result(sequence.spans())
            self._running = [s for s in self._running if not s.finished.done()]
            while self._queue and len(self._running) < self._p.slots:
                sequence = self._queue.popleft()
                sequence.borders.append((0, self.version))
                self._running.append(sequence)


class TimedFleet:
    """RolloutFleet's part that the controller uses, over timed engines; groups go into replay as an actor's do."""

    def __init__(self, proportions: Proportions, replay, *, samples: int, timeout_s: float = 120.0) -> None:
        self._p = proportions
        self.busy = BusyClock()
        self.absences, self.replicas = 0, [self]  # one that never goes
        self.engines = [TimedEngine(proportions) for _ in range(proportions.replicas)]
        self._outboxes = [Outbox(replay, timeout_s=timeout_s) for _ in self.engines]
        self._samples = samples
        self._running = [0] * proportions.replicas  # prompts handed to each engine and not answered

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """See RolloutFleet.rollout."""
        number = min(range(len(self.engines)), key=lambda index: self._running[index])
        self._running[number] += len(requests)
        self.busy.start()
        try:
            tokens = await asyncio.gather(*(self._roll_out(number, request) for request in requests))
        finally:
            self.busy.stop()
            self._running[number] -= len(requests)
        delivered = tuple(request.group_id for request in requests)
        return RolloutReceipt(delivered=delivered, bad=(), generated_tokens=sum(tokens), rethinking=RethinkingCounts(), busy_s=0.0)

    async def _roll_out(self, number: int, request: RolloutRequest) -> int:
        rng = random.Random(request.seed)
        lengths = [self._p.length(rng) for _ in range(self._samples)]
        spans = await asyncio.gather(*(self.engines[number].generate(length) for length in lengths))
        await self._outboxes[number].deliver(_group(request, lengths, spans, rng), request.turn)
        return sum(lengths)

    def close(self) -> None:
        """Stop the engines."""
        for engine in self.engines:
            engine.close()


class TimedLearner:
    """LearnerGroup's update and a WeightTransport's delivery, both waits."""

    def __init__(self, proportions: Proportions, fleet: TimedFleet) -> None:
        self._p, self._fleet = proportions, fleet

    async def update(self, shards: Sequence, *, step: int) -> dict[str, float]:
        """See LearnerGroup.update."""
        await asyncio.sleep(self._p.update_s * self._p.scale)
        return {}

    async def survive(self, call: Callable[[], Awaitable[SyncReport]]) -> SyncReport:
        """See LastingLearner.survive: nothing fails here."""
        return await call()

    async def deliver(self, version: int) -> SyncReport:
        """See WeightTransport.deliver: the engines are paused for the last part of it."""
        await asyncio.sleep((self._p.sync_s - self._p.pause_s) * self._p.scale)
        for engine in self._fleet.engines:
            engine.update(version)
        await asyncio.sleep(self._p.pause_s * self._p.scale)
        return SyncReport(paused_s=self._p.pause_s * self._p.scale, sent_bytes=0, num_replicas=self._p.replicas)


class TimedPrompts(Sequence[Prompt]):
    """As many prompts as a run may want."""

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        return Prompt(prompt_id=f"p{index}", question="?", image_paths=(), answer="", category="", source="")


def _group(request: RolloutRequest, lengths: list[int], spans: Sequence[tuple[VersionSpan, ...]], rng: random.Random) -> RolloutGroup:
    """A group of the size that a real one has, half of it right."""
    rewards = [float(rng.random() < 0.5) for _ in lengths]
    advantages = group_advantages(np.array(rewards), kind="mean")
    prompt = np.arange(512, dtype=np.int32)
    return RolloutGroup(
        group_id=request.group_id,
        prompt_id=request.prompt.prompt_id,
        trajectories=tuple(
            Trajectory(
                trajectory_id=f"{request.group_id}/{index}", group_id=request.group_id, prompt_id=request.prompt.prompt_id, category="",
                source="", answer="", prompt_token_ids=prompt, images=(), response_token_ids=np.arange(length, dtype=np.int32),
                response_text="", behavior_logprobs=np.zeros(length, np.float32), loss_mask=np.ones(length, np.bool_),
                version_spans=spans[index], segments=(Segment(kind="y1", start=0, end=length),), reward=rewards[index],
                advantage=float(advantages[index]), correct=rewards[index] > 0, correct_strict=rewards[index] > 0,
                correct_lenient=rewards[index] > 0, finish_reason="stop",
            )
            for index, length in enumerate(lengths)
        ),
    )  # fmt: skip

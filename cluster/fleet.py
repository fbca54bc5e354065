"""The rollout replicas as the controller sees them: start, hand out work, bring weights, evaluate, end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.actor import RolloutActor, RolloutReceipt
from actors.worker import EvaluatedAnswer, RolloutRequest
from algorithms.types import Prompt
from cluster.waiting import answer_within
from conf.resources import rollout_bundle
from conf.schema import Config

logger = logging.getLogger(__name__)

EVALUATION_CHUNK = 64  # questions of one call: enough to fill an engine's batch, small enough to share out evenly
CLOSE_TIMEOUT_S = 3.0  # engines end within this or are killed; part of the ten seconds that Ctrl-C may take


@dataclass(eq=False)
class Replica:
    """One rollout actor with its own placement group, since a placement group cannot grow."""

    index: int
    actor: ActorHandle
    placement: PlacementGroup
    running: int = 0  # prompts handed to it and not answered

    @property
    def name(self) -> str:
        """How errors and logs call it."""
        return f"rollout actor {self.index}"


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


@dataclass
class RolloutFleet:
    """All replicas of a run.

    Args:
        config: of the run.
        model_path: the engines' starting weights.
        replay: where groups go; None: only evaluation.
    """

    config: Config
    model_path: str
    replay: ActorHandle | None
    busy: BusyClock = field(default_factory=BusyClock)
    replicas: list[Replica] = field(default_factory=list)

    async def start(self, *, version: int) -> None:
        """Place and start all replicas side by side.

        Args:
            version: policy version of the weights in model_path.

        Raises:
            TimeoutError: naming the replica that was waited for.
        """
        self.replicas = [self._place(index) for index in range(self.config.rollout.num_actors)]
        timeout_s = self.config.rollout.start_timeout_s
        await asyncio.gather(
            *(answer_within(r.actor.start.remote(version), timeout_s, f"{r.name} to start its engine") for r in self.replicas)
        )

    def _place(self, index: int) -> Replica:
        config = self.config
        resources = rollout_bundle(config)
        placement = placement_group([resources], strategy="PACK")
        actor = RolloutActor.options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.rollout.threads), "OMP_WAIT_POLICY": "PASSIVE"}},
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=placement),
        ).remote(config, self.model_path, self.replay, index)
        return Replica(index=index, actor=actor, placement=placement)

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """Hand prompts to the least busy replica.

        Args:
            requests: of one call.

        Returns:
            Its receipt.

        Raises:
            TimeoutError: naming the replica.
        """
        replica = min(self.replicas, key=lambda r: (r.running, r.index))
        replica.running += len(requests)
        self.busy.start()
        try:
            what = f"{replica.name} to roll out {len(requests)} prompts"
            return await answer_within(replica.actor.rollout.remote(requests), self.config.rollout.timeout_s, what)
        finally:
            self.busy.stop()
            replica.running -= len(requests)

    async def update_weights(self, manifest: dict[str, Any], buckets: Sequence[ray.ObjectRef]) -> float:
        """Bring a published version into every engine.

        Args:
            manifest: of the version.
            buckets: its payloads.

        Returns:
            The longest time that a replica's generation was paused, in seconds.

        Raises:
            TimeoutError: naming the replica that did not finish.
        """
        timeout_s, task = self.config.weights.timeout_s, f"to take version {manifest['version']}"
        updates = (
            answer_within(r.actor.update_weights.remote(manifest, list(buckets)), timeout_s, f"{r.name} {task}") for r in self.replicas
        )
        return max(await asyncio.gather(*updates))

    async def evaluate(self, prompts: Sequence[Prompt], *, max_response_tokens: int) -> tuple[list[EvaluatedAnswer], list[tuple[str, str]]]:
        """Answer questions greedily on all replicas.

        Args:
            prompts: the questions.
            max_response_tokens: limit of an answer.

        Returns:
            Answers in the questions' order, and (prompt_id, reason) of those that can't be used.
        """
        chunks = [list(prompts[i : i + EVALUATION_CHUNK]) for i in range(0, len(prompts), EVALUATION_CHUNK)]
        results: list[Any] = [None] * len(chunks)
        waiting = iter(range(len(chunks)))

        async def work(replica: Replica) -> None:
            for number in waiting:
                results[number] = await answer_within(
                    replica.actor.evaluate.remote(chunks[number], max_response_tokens),
                    self.config.rollout.timeout_s,
                    f"{replica.name} to answer {len(chunks[number])} questions",
                )

        # two calls at a time on each replica, so that its engine never waits for the next chunk
        await asyncio.gather(*(work(replica) for replica in self.replicas for _ in range(2)))
        return [a for answers, _ in results for a in answers], [b for _, bad in results for b in bad]

    async def grade_counts(self) -> dict[str, int]:
        """How answers were decided on all replicas, by reason.

        Returns:
            Counts since the start.
        """
        totals: dict[str, int] = {}
        for replica in self.replicas:
            timeout_s = self.config.weights.timeout_s
            counts = await answer_within(replica.actor.grade_counts.remote(), timeout_s, f"{replica.name} to count grades")
            for reason, count in counts.items():
                totals[reason] = totals.get(reason, 0) + count
        return totals

    async def close(self) -> None:
        """End all replicas: politely, then for good."""
        closing = (answer_within(r.actor.close.remote(), CLOSE_TIMEOUT_S, f"{r.name} to close") for r in self.replicas)
        for replica, result in zip(self.replicas, await asyncio.gather(*closing, return_exceptions=True), strict=True):
            if isinstance(result, BaseException):
                logger.info("%s did not close by itself: %s", replica.name, result)
            ray.kill(replica.actor)
            remove_placement_group(replica.placement)
        self.replicas = []

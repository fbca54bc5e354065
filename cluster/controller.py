"""The clock of a run: two loops, one that produces rollout groups and one that consumes them.

    produce:  PromptLedger --requests--> RolloutFleet --groups--> ReplayActor
    consume:  ReplayActor --shards--> LearnerGroup --weights, version + 1--> RolloutFleet

Payload goes from actor to actor; the controller sees receipts, references and versions. Admission ties the loops together:
with max_staleness 0 they alternate, with k > 0 production runs ahead by at most k versions. Steps consume groups in the order of issue.
Owns step, version and the order of events. Must not do arithmetic on metrics, transport or retries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.worker import RolloutRequest
from algorithms.rethinking import RethinkingCounts
from cluster.admission import Admission
from cluster.bad_rows import BadRows
from cluster.fleet import RolloutFleet
from cluster.lasting_learner import LastingLearner
from cluster.ledger import PromptLedger
from cluster.replica import ReplicaLostError
from cluster.transport import WeightTransport
from cluster.waiting import answer_within
from conf.schema import Config
from conf.sizes import batch_size, in_lockstep

StepHook = Callable[[int, dict[str, float]], Awaitable[None]]


@dataclass
class Controller:
    """Drives the roles through the steps of a run.

    Args:
        config: of the run.
        ledger: issues prompts.
        fleet: rolls them out.
        replay: keeps and draws trajectories.
        learner: trains on them.
        transport: brings its weights back to the fleet.
        bad_rows: counts prompts that can't be used.
        after_step: awaited after each step with the number of steps done and the step's metrics; evaluation, checkpoints and
            reports hang here, so production goes on meanwhile.
        step: steps done before.
        generated_tokens: by the delivered groups, before.
        last_step: steps done when run returns; None: run.num_steps.
    """

    config: Config
    ledger: PromptLedger
    fleet: RolloutFleet
    replay: ActorHandle
    learner: LastingLearner
    transport: WeightTransport
    bad_rows: BadRows
    after_step: StepHook
    step: int = 0
    generated_tokens: int = 0
    last_step: int | None = None
    rethinking: RethinkingCounts = field(default_factory=RethinkingCounts)  # of what was delivered since the last step
    stopping: bool = False  # run returns after the step under way
    in_step: bool = False  # between a draw and the version made of it: no moment for a checkpoint
    _give_up_draw: asyncio.Event = field(default_factory=asyncio.Event)
    _handed_out: int = 0
    _calls: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def version(self) -> int:
        """The policy version in service: each step makes one."""
        return self.step

    @property
    def end(self) -> int:
        """Steps done when run returns."""
        return self.config.run.num_steps if self.last_step is None else self.last_step

    async def run(self) -> None:
        """Go on to the last step.

        Raises:
            ExceptionGroup: of whatever ended a loop; the other loop is cancelled.
        """
        algorithm = self.config.algorithm
        self._admission = Admission(
            prompts_per_step=algorithm.prompts_per_step,
            max_staleness=algorithm.max_staleness,
            num_steps=self.end,
            version=self.version,
            accepted=self.ledger.settled,
        )
        async with asyncio.TaskGroup() as tasks:
            producing = tasks.create_task(self._produce_in_lockstep() if in_lockstep(self.config) else self._produce(tasks))
            await self._consume()
            producing.cancel()
            for call in self._calls:
                call.cancel()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the clock, between two steps.

        Returns:
            JSON-able.
        """
        return {
            "step": self.step,
            "generated_tokens": self.generated_tokens,
            "handed_out": self._handed_out,
            "bad_rows": self.bad_rows.state(),
            "ledger": self.ledger.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: of a controller over the same data and seed.
        """
        self.step = state["step"]
        self.generated_tokens = state["generated_tokens"]
        self._handed_out = state["handed_out"]
        self.bad_rows.restore(state["bad_rows"])
        self.ledger.restore(state["ledger"])

    def stop(self, *, at_once: bool = False) -> None:
        """Let run return after the step under way.

        Args:
            at_once: a step that still waits for its groups is not made any more.
        """
        self.stopping = True
        if at_once:
            self._give_up_draw.set()

    async def _produce(self, tasks: asyncio.TaskGroup) -> None:
        """Consumes prompts, produces rollout calls; waits for admission, unblocked by a new version in service."""
        while True:
            admitted = await self._admission.admit(self.config.rollout.prompts_per_call)
            call = tasks.create_task(self._roll_out([self.ledger.issue() for _ in range(admitted)]))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _produce_in_lockstep(self) -> None:
        """The same for the synchronous mode: one call a replica for the whole step, so that engines compute the same batches each time."""
        while True:
            admitted = await self._admission.admit(self.config.algorithm.prompts_per_step)
            requests = [self.ledger.issue() for _ in range(admitted)]
            await self.fleet.someone()
            share = -(-admitted // len(self.fleet.replicas))
            await asyncio.gather(*(self._roll_out(requests[start : start + share]) for start in range(0, admitted, share)))

    async def _roll_out(self, requests: list[RolloutRequest]) -> None:
        """Consumes requests, produces groups in replay; waits for one replica. A lost one's are issued again."""
        num_prompts = len(requests)
        try:
            receipt = await self.fleet.rollout(requests)
        except ReplicaLostError:
            self.ledger.take_back(request.group_id for request in requests)
            self._admission.finish(accepted=0, dropped=num_prompts)
            return
        self.ledger.settle(receipt.delivered)
        self.ledger.discard(group_id for group_id, _ in receipt.bad)
        self._admission.finish(accepted=len(receipt.delivered), dropped=len(receipt.bad))
        self._handed_out += num_prompts
        self.generated_tokens += receipt.generated_tokens
        self.rethinking += receipt.rethinking
        row_ids = {request.group_id: request.prompt.prompt_id for request in requests}
        self.bad_rows.report(((row_ids[group_id], reason) for group_id, reason in receipt.bad), handed_out=self._handed_out)

    async def _consume(self) -> None:
        """Consumes prompts_per_step groups a step, produces a version; waits for replay, then the learner, then the fleet."""
        while self.step < self.end and not self.stopping:
            begin = time.monotonic()
            sampled, shards = await self._sample()
            if not shards:
                return
            self.in_step, drawn = True, time.monotonic()
            trained = await self.learner.update(shards, step=self.step)
            updated = time.monotonic()
            synced = await self.learner.survive(lambda: self.transport.deliver(self.version + 1))
            self.step += 1
            self.in_step = False
            if not in_lockstep(self.config):
                self._admission.publish(self.version)
            end = time.monotonic()
            metrics = {
                **sampled,
                **trained,
                **self.rethinking.metrics(),
                "time/rollout_s": self.fleet.busy.take(),
                "time/replay_wait_s": drawn - begin,
                "time/update_s": updated - drawn,
                "time/weight_sync_s": end - updated,
                **synced.metrics(),
                "time/step_s": end - begin,
                "tokens/generated": float(self.generated_tokens),
                "data/bad_rows": float(self.bad_rows.count),
            }
            self.rethinking = RethinkingCounts()
            await self.after_step(self.step, metrics)
            self._admission.publish(self.version)  # only now in lockstep, so that no evaluation shares the engines with rollouts

    async def _sample(self) -> tuple[dict[str, float], list]:
        """The step's statistics and one reference a learner rank; no references when the run is to stop without the step."""
        while True:
            absences = self.fleet.absences
            stats, shards = self._draw()
            waited_for = f"the replay actor to draw step {self.step + 1}"
            answering = asyncio.ensure_future(answer_within(stats, self.config.replay.timeout_s + REPLAY_GRACE_S, waited_for))
            giving_up = asyncio.ensure_future(self._give_up_draw.wait())
            try:
                await asyncio.wait({answering, giving_up}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done() and not await _came_all_the_same(stats, answering):
                    return {}, []
                return answering.result(), shards
            except TimeoutError:
                if self.fleet.replicas and self.fleet.absences == absences:
                    raise
                await self.fleet.someone()  # nobody sampled for a while: that has a deadline of its own
            finally:
                answering.cancel()
                giving_up.cancel()

    def _draw(self) -> tuple[Any, list]:
        """References to the draw's statistics and to each rank's rows."""
        algorithm, num_ranks = self.config.algorithm, self.config.learner.num_ranks
        stats, *shards = self.replay.sample.options(num_returns=1 + num_ranks).remote(
            num_updates=algorithm.updates_per_step,
            batch_size=batch_size(self.config),
            num_shards=num_ranks,
            policy_version=self.version,
            num_groups=algorithm.prompts_per_step,
            max_staleness=algorithm.max_staleness,
            request_id=f"step {self.step + 1}",  # a replay actor that died with the answer gives the same again
        )
        return stats, shards


REPLAY_GRACE_S = 10.0  # replay's own deadline comes first, since its error says what was there


async def _came_all_the_same(stats: Any, answering: asyncio.Task[dict[str, float]]) -> bool:
    """Call a draw off, else it could take groups that no step will have; True when it was made before that, and a step has to be."""
    ray.cancel(stats)
    await asyncio.wait({answering}, timeout=REPLAY_GRACE_S)
    return answering.done() and not answering.cancelled() and answering.exception() is None

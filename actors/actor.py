"""The Ray shell of a rollout replica: an engine, a worker and a door to replay, in one asynchronous actor.

Owns delivery (groups go straight into replay, only receipts come back) and the replica's life. Must not know the
learner: weights arrive as buckets with a manifest, wherever they come from.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle

from actors.answers import EvaluatedAnswer
from actors.engine import PromptRefusedError, RolloutEngine
from actors.intake import WeightIntake, WeightReceipt
from actors.lockstep import Lockstep
from actors.worker import RolloutRequest, RolloutWorker
from algorithms.rethinking import RethinkingCounts
from algorithms.schema import to_record_batch
from algorithms.types import Prompt, RolloutGroup
from algorithms.wire import Parcel
from conf.schema import Config, EvaluationMode
from conf.sizes import in_lockstep
from tasks.errors import BadPromptError
from tasks.families import read_form
from tasks.grading import GraderPool
from tasks.prompts import PromptEncoder
from weights.manifest import EarlyPart, Shipment

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutReceipt:
    """What became of one call's prompts."""

    delivered: tuple[str, ...]  # group ids that replay has accepted
    bad: tuple[tuple[str, str], ...]  # (group_id, reason) of prompts that can't be used
    generated_tokens: int  # y2s that were dropped included
    rethinking: RethinkingCounts  # of the delivered groups
    busy_s: float  # from the call's arrival to its last group's acceptance


class Outbox:
    """Hands finished groups to replay, as many at a time as have piled up while the last insert was under way.

    Args:
        replay: the replay actor.
        timeout_s: deadline of one insert.
    """

    def __init__(self, replay: ActorHandle, *, timeout_s: float) -> None:
        self._replay = replay
        self._timeout_s = timeout_s
        self._waiting: list[tuple[RolloutGroup, int, asyncio.Future[None]]] = []
        self._inserting = asyncio.Lock()

    async def deliver(self, group: RolloutGroup, turn: int) -> None:
        """Return when replay has accepted the group.

        Args:
            group: to insert.
            turn: its place in the order of consumption.

        Raises:
            RuntimeError: when replay refuses it or doesn't answer in time.
        """
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((group, turn, accepted))
        async with self._inserting:
            if not accepted.done():
                await self._flush()
        await accepted

    async def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        rows = to_record_batch(t for group, _, _ in batch for t in group.trajectories)
        turns = {group.group_id: turn for group, turn, _ in batch}
        try:
            await asyncio.wait_for(self._replay.insert.remote(Parcel(rows), turns=turns), self._timeout_s)
        except BaseException as error:
            for _, _, accepted in batch:
                refusal = f"the replay actor did not accept {len(batch)} groups (deadline {self._timeout_s} s): {error!r}"
                accepted.set_exception(RuntimeError(refusal))
            if not isinstance(error, Exception):
                raise
            return
        for _, _, accepted in batch:
            accepted.set_result(None)


@ray.remote(concurrency_groups={"control": 4}, max_concurrency=1000)
class RolloutActor:
    """One rollout replica.

    Args:
        config: of the run.
        model_path: Hugging Face folder the engine starts from.
        replay: the replay actor; None: only evaluation.
        index: of this replica.
    """

    def __init__(self, config: Config, model_path: str, replay: ActorHandle | None, index: int) -> None:
        self._config = config
        self._model_path = model_path
        self._index = index
        self._replay = replay
        self._engine: RolloutEngine | None = None
        self._state = "starting"
        self._version: int | None = None  # in service

    def __repr__(self) -> str:
        """Name the role, the replica and its node in Ray's logs and dashboard, which ask once, at the start: nothing that changes."""
        return f"RolloutActor(replica={self._index}, node={ray.util.get_node_ip_address()})"

    async def start(self, version: int) -> dict[str, Any]:
        """Start the engine and the graders.

        Args:
            version: policy version of the weights in the model's folder.

        Returns:
            The replica's process, worker and node, as Ray names them, the node's address and the seconds to start.
        """
        begin = time.monotonic()
        config = self._config
        form = read_form(
            self._model_path,
            min_pixels=config.model.min_pixels,
            max_pixels=config.model.max_pixels,
            trust_remote_code=config.model.trust_remote_code,
        )
        self._engine = RolloutEngine(
            self._model_path,
            model=config.model,
            rollout=config.rollout,
            device=config.cluster.device,
            seed=config.run.seed + self._index,
            name=f"the engine of rollout replica {self._index}",
            image_pad_id=form.image_pad_id,
            metrics_name=f"{config.run.name}/rollout-{self._index}" if config.report.engine_metrics else None,
        )
        self._grader = GraderPool(
            processes=config.reward.grader_processes,
            timeout_s=config.reward.grader_timeout_s,
            memory_bytes=config.reward.grader_memory_bytes,
        )
        self._intake = WeightIntake(self._engine, timeout_s=config.weights.timeout_s, name=f"rollout replica {self._index}")
        await self._engine.start(version=version)
        # Who only answers questions has no steps, and gets its questions one by one.
        self._lockstep = Lockstep(self._engine) if in_lockstep(config) and self._replay is not None else None
        self._worker = RolloutWorker(
            engine=self._lockstep or self._engine,
            encoder=PromptEncoder(
                form.tokenizer,
                suffix=config.data.prompt_suffix,
                max_prompt_tokens=config.model.max_prompt_tokens,
                image_pad=form.image_pad,
                count_tokens=form.count_tokens,
            ),
            grader=self._grader,
            allowed_token_ids=form.allowed_token_ids,
            algorithm=config.algorithm,
            model=config.model,
            rollout=config.rollout,
            reward_config=config.reward,
            rethinking=config.rethinking,
        )
        if self._replay is not None:
            self._outbox = Outbox(self._replay, timeout_s=config.replay.timeout_s)
        self._version = version
        self._state = "healthy"
        return {**await self.whereabouts(), "start_s": time.monotonic() - begin}

    @ray.method(concurrency_group="control")
    async def whereabouts(self) -> dict[str, Any]:
        """Say where this actor runs, also before it has started its engine: its log is there, if the start fails.

        Returns:
            Process, worker and node, as Ray names them, and the node's address.
        """
        context = ray.get_runtime_context()
        return {
            "pid": os.getpid(),
            "worker": context.get_worker_id(),
            "node": context.get_node_id(),
            "address": ray.util.get_node_ip_address(),
        }

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """Roll out prompts side by side and put each group into replay as it is finished.

        Args:
            requests: visits of prompts.

        Returns:
            What was delivered and what could not be used.

        Raises:
            EngineError: when the engine died.
            RuntimeError: when replay doesn't accept a group.
        """
        begin = time.monotonic()
        results = await self._side_by_side([self._roll_and_deliver(request) for request in requests])
        for result in results:
            if isinstance(result, BaseException):
                raise result
        names = [request.group_id for request in requests]
        delivered = [(name, result) for name, result in zip(names, results, strict=True) if isinstance(result, RethinkingCounts)]
        bad = [(name, result) for name, result in zip(names, results, strict=True) if isinstance(result, str)]
        counts = sum((result for _, result in delivered), RethinkingCounts())
        return RolloutReceipt(
            delivered=tuple(group_id for group_id, _ in delivered),
            bad=tuple(bad),
            generated_tokens=counts.generated_tokens,
            rethinking=counts,
            busy_s=time.monotonic() - begin,
        )

    async def _roll_and_deliver(self, request: RolloutRequest) -> RethinkingCounts | str:
        """What it took to make the group, or the reason why its prompt is bad."""
        try:
            rolled = await self._worker.rollout(request)
        except (BadPromptError, PromptRefusedError) as error:
            return str(error)
        await self._outbox.deliver(rolled.group, request.turn)
        return rolled.counts

    async def _side_by_side(self, jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T | BaseException]:
        """Results or errors of jobs that share the engine."""
        if self._lockstep is not None:
            return await self._lockstep.together(jobs)
        return await asyncio.gather(*jobs, return_exceptions=True)

    async def pass_rates(self, requests: list[RolloutRequest]) -> list[float | str]:
        """Sample and grade groups without keeping them.

        Args:
            requests: visits of prompts.

        Returns:
            The share of right responses of each, or the reason why its prompt can't be used.
        """
        results = await asyncio.gather(*(self._worker.rollout(request) for request in requests), return_exceptions=True)
        rates: list[float | str] = []
        for result in results:
            if isinstance(result, BadPromptError | PromptRefusedError):
                rates.append(str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                rates.append(sum(t.correct for t in result.group.trajectories) / len(result.group.trajectories))
        return rates

    async def evaluate(
        self, prompts: list[Prompt], max_response_tokens: int, mode: EvaluationMode = EvaluationMode.none
    ) -> tuple[list[EvaluatedAnswer], list[tuple[str, str]]]:
        """Answer questions greedily.

        Args:
            prompts: the questions.
            max_response_tokens: limit of an answer.
            mode: what counts as the answer.

        Returns:
            The answers, and (prompt_id, reason) of questions that can't be used.
        """
        results = await self._side_by_side(
            [self._worker.answer(prompt, max_response_tokens=max_response_tokens, mode=mode) for prompt in prompts]
        )
        answers: list[EvaluatedAnswer] = []
        bad: list[tuple[str, str]] = []
        for prompt, result in zip(prompts, results, strict=True):
            if isinstance(result, BadPromptError | PromptRefusedError):
                bad.append((prompt.prompt_id, str(result)))
            elif isinstance(result, BaseException):
                raise result
            else:
                answers.append(result)
        return answers, bad

    async def expect_weights(self, paths: tuple[str, ...], version: int) -> None:
        """Read files of this node while they are being written; see WeightIntake.expect."""
        self._running()
        await self._intake.expect(paths, version)

    async def take_early(self, early: EarlyPart) -> None:
        """Take one bucket of a version that is still being published; see WeightIntake.take_early."""
        self._running()
        await self._intake.take_early(early)

    async def update_weights(self, shipment: Shipment) -> WeightReceipt:
        """Put a published version into the engine; see WeightIntake.take."""
        self._running()
        receipt = await self._intake.take(shipment)
        self._version = receipt.version
        return receipt

    async def init_weight_transfer(self, init_info: dict[str, Any], *, timeout_s: float) -> None:
        """Join the learner's NCCL broadcast; see RolloutEngine.init_weight_transfer."""
        await self._running().init_weight_transfer(init_info, timeout_s=timeout_s)

    async def start_weight_update(self, *, timeout_s: float) -> None:
        """Pause and open the model for a broadcast; see RolloutEngine.start_weight_update."""
        await self._running().start_weight_update(timeout_s=timeout_s)

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Take part in a broadcast; see RolloutEngine.receive_weights."""
        await self._running().receive_weights(update_info)

    async def finish_weight_update(self, version: int, checksum: str) -> None:
        """Close the model, shake hands, stamp the version and resume; see RolloutEngine.finish_weight_update."""
        await self._running().finish_weight_update(version, checksum)
        self._version = version

    async def abandon_weight_update(self, reason: str) -> None:
        """Close an update that the learner has given up; see RolloutEngine.abandon_weight_update."""
        await self._running().abandon_weight_update(reason)

    async def score(self, prompt: Prompt, response_token_ids: list[int]) -> list[float]:
        """The engine's log-probs of a fixed response, for comparison with the learner's.

        Args:
            prompt: with its images.
            response_token_ids: [R].

        Returns:
            [R] nats, over the whole vocabulary at temperature 1.
        """
        encoded = await self._worker.encode(prompt)
        hashes = [ref.sha256 for ref in encoded.refs]
        logprobs = await self._running().score(encoded.token_ids, encoded.images, hashes, response_token_ids)
        return [float(value) for value in logprobs]

    def _running(self) -> RolloutEngine:
        if self._engine is None:
            raise RuntimeError(f"rollout replica {self._index} is {self._state}: call start first")
        return self._engine

    @ray.method(concurrency_group="control")
    async def health(self) -> dict[str, Any]:
        """Answer at once, whatever the engine is doing.

        Returns:
            State, version and process id of this replica, and whether its engine's processes run.
        """
        engine = self._engine.condition() if self._engine is not None else "running"
        return {"state": self._state, "replica": self._index, "version": self._version, "pid": os.getpid(), "engine": engine}

    async def grade_counts(self) -> dict[str, int]:
        """How answers were decided, by reason.

        Returns:
            Counts since the start.
        """
        return dict(self._grader.counts)

    async def close(self) -> None:
        """End the engine's and the graders' processes and leave nothing in shared memory."""
        self._state = "closed"
        self._grader.close()
        self._intake.close()
        if self._engine is not None:
            await self._engine.close()

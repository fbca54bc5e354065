"""The learner group as the controller sees it: D ranks that act as one.

Owns placement, the meeting of the ranks, deadlines and the naming of who failed. Must not know what a rank computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from conf.resources import learner_bundle
from conf.schema import Config
from learner.actor import LearnerRank
from weights.manifest import BroadcastOutcome, EarlyPart, Shipment

if TYPE_CHECKING:
    from algorithms.types import Trajectory
    from tasks.worked import WorkedAnswer

DEATH_NOTICE_S = 2.0
"""How long Ray may take to tell of a rank's death, after another rank's error, before that error is blamed."""

RELEASE_TIMEOUT_S = 1.0
"""How long a rank may take to remove its files before it is ended."""


class LearnerGroupError(RuntimeError):
    """A rank failed or did not answer in time; the message names it. The group has been ended: its ranks wait for each other."""


class CheckpointWriteError(OSError):
    """Files of a checkpoint could not be written; the message says which rank's and why."""


class LearnerGroup:
    """D learner ranks in one placement group.

    The ranks' collectives need each other, so one rank's failure ends the group; a new one goes on from a checkpoint.

    Args:
        config: of the run.
        model_path: Hugging Face folder that the policy starts from, readable by every rank.
    """

    def __init__(self, config: Config, model_path: str) -> None:
        self._config = config
        self._model_path = model_path
        self._placement: PlacementGroup | None = None
        self._ranks: list[ActorHandle] = []

    async def start(self) -> None:
        """Place the ranks and bring them together.

        Raises:
            LearnerGroupError: when the cluster has no room for them, a rank fails, or one isn't there within learner.start_timeout_s.
        """
        settings = self._config.learner
        await self._place()
        ((address, port),) = await self._call("pick a port", "meeting_point", [()], settings.start_timeout_s)
        arguments = [(address, port)] * settings.num_ranks
        await self._call("load the policy and meet the other ranks", "start", arguments, settings.start_timeout_s)

    async def update(self, shards: Sequence[Any], *, step: int) -> dict[str, float]:
        """Take one training step's optimizer updates.

        Args:
            shards: one a rank: tables of SAMPLE_SCHEMA, or references to them.
            step: training step, from 0.

        Returns:
            Step metrics over all ranks.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        return (await self._on_shards(f"take step {step}", "update", shards, step))[0]

    async def supervised_update(self, shards: Sequence[Any], *, step: int) -> float:
        """Take one optimizer step towards given responses.

        Args:
            shards: one a rank: tables of TRAJECTORY_SCHEMA, or references to them.
            step: optimizer step, from 0.

        Returns:
            Mean negative log-likelihood before the step, nats a token.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        return (await self._on_shards(f"take supervised step {step}", "supervised_update", shards, step))[0]

    async def score(
        self, trajectories: pa.Table, *, temperature: float | None = None, mask_banned: bool = True
    ) -> list[NDArray[np.float32]]:
        """Compute the policy's log-probs of given responses, on every rank alike.

        Args:
            trajectories: of TRAJECTORY_SCHEMA.
            temperature: another one than the sampling distribution's; None: that one.
            mask_banned: False: under the distribution over the whole vocabulary.

        Returns:
            [R] each, nats.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        table = ray.put(trajectories)
        return (await self._on_all(f"score {trajectories.num_rows} trajectories", "score", table, temperature, mask_banned))[0]

    async def first_usable(self, answers: Sequence[WorkedAnswer]) -> tuple[int, Trajectory]:
        """Find the first worked answer that can be used: the ranks have the tokenizer, and whoever asks needn't load one.

        Args:
            answers: at least one.

        Returns:
            Its place among the answers, and the answer as a trajectory.

        Raises:
            LearnerGroupError: when there is none, with the reason of the last one, or rank 0 failed or doesn't answer.
        """
        return (await self._call("encode an answer", "first_usable", [(list(answers),)], ends_group=False))[0]

    async def publish(
        self, version: int, *, compare: bool = False, early: Callable[[EarlyPart], None] = lambda part: None
    ) -> Shipment:
        """Copy the weights out of training.

        Args:
            version: policy version that they are.
            compare: find out what has changed since the version before.
            early: given each bucket as soon as it is known what of it has changed, while the ranks go on with the next.

        Returns:
            Their files on rank 0's node and, when compared, the parts for receivers of the version before. Valid until the next one.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """

        async def followed(stream: Any) -> Shipment | None:
            shipment = None
            async for reference in stream:
                item = await reference
                if isinstance(item, EarlyPart):
                    early(item)
                else:
                    shipment = item
            return shipment

        arguments = [(version, compare)] * len(self._ranks)
        return (await self._call(f"publish version {version}", "publish", arguments, answer=followed))[0]

    async def whole_weights(self) -> Shipment:
        """The last published version for a receiver on any node, while the group may be computing a step.

        Raises:
            LearnerGroupError: when rank 0 failed, doesn't answer, or has published nothing.
        """
        return (await self._call("give out the whole weights", "whole_weights", [()], ends_group=False))[0]

    async def connect_broadcast(self, actors: Mapping[str, ActorHandle], *, workers_per_actor: int) -> dict[str, str]:
        """Meet the rollout engines for NCCL broadcasts, on a port of rank 0's node.

        Args:
            actors: name and handle of every rollout actor.
            workers_per_actor: GPUs of an engine.

        Returns:
            Why each actor that did not connect in time didn't, by name; the broadcast group is of no use then.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        ((address, port),) = await self._call("pick a port for the broadcast", "meeting_point", [()])
        arguments = (dict(actors), workers_per_actor, address, port)
        return (await self._on_all("connect to the rollout engines", "connect_broadcast", *arguments))[0]

    async def broadcast(self, version: int) -> BroadcastOutcome:
        """Send the weights to every connected engine.

        Args:
            version: policy version that these weights are.

        Returns:
            What became of it; an engine's failure is no failure of the group.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        return (await self._on_all(f"broadcast version {version}", "broadcast", version))[0]

    async def begin_checkpoint(self, folder: str) -> None:
        """Copy weights and optimizer state, and start to write them into a folder that all ranks share; training may go on.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        await self._on_all(f"copy its state for {folder}", "begin_checkpoint", folder)

    async def finish_checkpoint(self) -> None:
        """Wait until every rank's files are on the disk.

        Raises:
            CheckpointWriteError: when they can't be written; the group is sound.
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        failures = await self._call("write its checkpoint", "finish_checkpoint", [()] * len(self._ranks), ends_group=False)
        if told := [f"rank {rank}: {failure}" for rank, failure in enumerate(failures) if failure is not None]:
            raise CheckpointWriteError("; ".join(told))

    async def save_checkpoint(self, folder: str) -> None:
        """Both in one.

        Raises:
            CheckpointWriteError, LearnerGroupError: as they do.
        """
        await self.begin_checkpoint(folder)
        await self.finish_checkpoint()

    async def load_checkpoint(self, folder: str) -> None:
        """Go on from a checkpoint of an equal group.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        await self._on_all(f"read the checkpoint in {folder}", "load_checkpoint", folder)

    async def export_model(self, folder: str) -> None:
        """Write the policy as a Hugging Face folder.

        Raises:
            LearnerGroupError: naming the rank that failed or was waited for.
        """
        await self._on_all(f"write the model to {folder}", "export_model", folder)

    async def health(self) -> list[dict[str, Any]]:
        """What each rank is doing, answered at once.

        Raises:
            LearnerGroupError: naming the rank that is dead or doesn't answer.
        """
        return await self._on_all("say how it is", "health")

    async def close(self) -> None:
        """End the ranks and give their resources back; closing twice is fine."""
        released = asyncio.gather(*(_awaited(rank.release_files.remote()) for rank in self._ranks[:1]), return_exceptions=True)
        await asyncio.wait({released}, timeout=RELEASE_TIMEOUT_S)  # a dead or stalled rank's are removed by the next one on its node
        released.cancel()
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    async def _place(self) -> None:
        """Reserve every rank's resources at once, so that a group is never half there."""
        settings = self._config.learner
        bundle = learner_bundle(self._config)
        self._placement = placement_group([bundle] * settings.num_ranks, strategy="PACK")
        try:
            await asyncio.wait_for(_awaited(self._placement.ready()), settings.start_timeout_s)
        except TimeoutError:
            await self.close()
            raise LearnerGroupError(
                f"no room for {settings.num_ranks} learner ranks of {bundle} within {settings.start_timeout_s:g} s; "
                f"the cluster has {ray.cluster_resources()}, free are {ray.available_resources()}"
            ) from None
        # A spinning OpenMP thread takes the core from the engines beside it.
        environment = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self._ranks = [
            LearnerRank.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                runtime_env={"env_vars": environment},
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=rank),
            ).remote(self._config, self._model_path, rank)
            for rank in range(settings.num_ranks)
        ]

    async def _on_all(self, task: str, method: str, *arguments: Any) -> list[Any]:
        return await self._call(task, method, [arguments] * len(self._ranks))

    async def _on_shards(self, task: str, method: str, shards: Sequence[Any], step: int) -> list[Any]:
        if len(shards) != self._config.learner.num_ranks:
            raise ValueError(f"the learner group can't {task}: {len(shards)} shards for {self._config.learner.num_ranks} ranks")
        return await self._call(task, method, [(shard, step) for shard in shards])

    async def _call(
        self,
        task: str,
        method: str,
        arguments: Sequence[tuple],
        timeout_s: float | None = None,
        *,
        ends_group: bool = True,
        answer: Callable[[Any], Awaitable[Any]] | None = None,
    ) -> list[Any]:
        """Call a method on the first ranks, one tuple of arguments each; all answers, or the end of the group.

        A failure ends the wait: the other ranks would wait for the failed one until their own time-out. Calls in which no rank waits for
        another leave the group as it is: the next step finds out what is left of it. An answer is awaited, unless it takes more than that.
        """
        ranks = self._ranks
        if not ranks:
            raise LearnerGroupError(f"the learner group can't {task}: it isn't running")
        deadline_s = self._config.learner.timeout_s if timeout_s is None else timeout_s
        made = [getattr(rank, method).remote(*args) for rank, args in zip(ranks, arguments, strict=False)]
        calls = [asyncio.ensure_future((answer or _awaited)(call)) for call in made]
        try:
            done, pending = await asyncio.wait(calls, timeout=deadline_s, return_when=asyncio.FIRST_EXCEPTION)
            if pending and any(call.exception() for call in done):
                # The peers of a dead rank notice first, by a broken connection: the death itself is what must be told.
                done, _ = await asyncio.wait(calls, timeout=DEATH_NOTICE_S)
            failed = [call for call in calls if call in done and call.exception() is not None]
            if failed:
                culprit = next((call for call in failed if isinstance(call.exception(), RayActorError)), failed[0])
                error = culprit.exception()
                # Ray's own message is a whole remote traceback, which stays reachable as the cause.
                reason = getattr(error, "cause", None) or error
                raise LearnerGroupError(f"learner rank {calls.index(culprit)} failed to {task}: {reason!r}") from error
            if pending:
                late = ", ".join(str(index) for index, call in enumerate(calls) if call in pending)
                raise LearnerGroupError(f"waited {deadline_s:g} s for learner rank {late} to {task}")
            return [call.result() for call in calls]
        except LearnerGroupError:
            if ends_group and self._ranks is ranks:  # and not a successor's, while this call was still waiting for its predecessor
                await self.close()
            raise
        finally:
            for call in calls:
                call.cancel()


async def _awaited(reference: Any) -> Any:
    return await reference

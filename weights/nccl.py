"""The GPU transport: vLLM's own NCCL broadcast from learner rank 0 to every engine worker, with a checksum and a way out.

Owns the sender's end: the client that drives several rollout actors as one, the group's geometry, and what becomes of a broadcast that
one of them leaves. Imports vLLM, so only learners on GPUs import it. Must not know what a rollout actor does besides the five weight calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from weights.fingerprint import ModelFingerprint
from weights.manifest import BroadcastOutcome, WeightUpdateError
from weights.source import DeepSpeedWeightSource
from weights.way_out import WayOut, abandon_broadcast

WeightSource.register(DeepSpeedWeightSource)

_LOOK_S = 0.5  # between two looks at calls that are under way


class RolloutActorsClient:
    """vLLM's weight-sync client over rollout actors: each call goes to all of them and has one deadline.

    An actor that fails is noted in `failures` and gets no further call. A failure before the broadcast ends it, since the group counts
    on every member; one that has received everything is finished although another one failed.

    Args:
        actors: name and Ray handle of each; a handle has init_weight_transfer, start_weight_update, receive_weights,
            finish_weight_update and abandon_weight_update, as RolloutActor has them.
        timeout_s: for one call, and for the update as a whole at the engines' end.
    """

    def __init__(self, actors: Mapping[str, Any], *, timeout_s: float) -> None:
        self._actors = dict(actors)
        self._timeout_s = timeout_s
        self.failures: dict[str, str] = {}
        self.version = 0  # stamped by the next finish_weight_update
        self.checksum = ""  # that every actor must answer there

    @property
    def broken(self) -> bool:
        """Whether an actor has failed, so that the broadcast cannot end."""
        return bool(self.failures)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect every actor; workers take the ranks behind those of the actors before theirs."""
        workers_per_actor = (init_info["world_size"] - 1) // len(self._actors)
        calls = {}
        for index, (name, actor) in enumerate(self._actors.items()):
            shifted = {**init_info, "rank_offset": init_info["rank_offset"] + index * workers_per_actor}
            calls[name] = actor.init_weight_transfer.remote(shifted, timeout_s=self._timeout_s)
        self._wait("connect to the broadcast", calls)

    def start_weight_update(self) -> None:
        """Pause every actor and open its model."""
        calls = {name: actor.start_weight_update.remote(timeout_s=self._timeout_s) for name, actor in self._actors.items()}
        self._wait("start the update", calls)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let every actor take part in the broadcast; who has received everything goes on."""
        calls = {name: actor.receive_weights.remote(update_info) for name, actor in self._actors.items()}
        self._wait("receive the weights", calls, some_are_enough=True)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the model of every actor that has received the weights, compare its checksum, stamp the version and resume."""
        version = self.version if weight_version is None else int(weight_version)
        calls = {name: actor.finish_weight_update.remote(version, self.checksum) for name, actor in self._sound().items()}
        self._wait("finish the update", calls, some_are_enough=True)

    def abandon(self) -> None:
        """Have every actor that has not failed close the update that it may have open; it samples again after a whole one."""
        reason = "the sender gave the broadcast up: " + _told(self.failures)
        calls = [actor.abandon_weight_update.remote(reason) for actor in self._sound().values()]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=self._timeout_s)

    def _sound(self) -> dict[str, Any]:
        return {name: actor for name, actor in self._actors.items() if name not in self.failures}

    def _wait(self, what: str, calls: dict[str, Any], *, some_are_enough: bool = False) -> None:
        """Wait for all calls, noting each failure when it happens. Raises WeightUpdateError naming the actors that failed."""
        names = {reference: name for name, reference in calls.items()}
        under_way = list(calls.values())
        deadline = time.monotonic() + self._timeout_s
        while under_way and time.monotonic() < deadline:
            ready, under_way = ray.wait(under_way, num_returns=1, timeout=min(_LOOK_S, self._timeout_s))
            for reference in ready:
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    self.failures[names[reference]] = _line(error)
        for reference in under_way:
            self.failures[names[reference]] = f"no answer within {self._timeout_s:.0f} s"
        failed = {name: self.failures[name] for name in calls if name in self.failures}
        if failed and not (some_are_enough and len(failed) < len(calls)):
            raise WeightUpdateError(f"could not {what}: {_told(failed)}")


class CheckedTrainerEngine(NCCLTrainerWeightTransferEngine):
    """vLLM's sender, that sums up what it sends and lets nobody wait: not itself, not the receivers, not the other learner ranks."""

    client: RolloutActorsClient
    model_update_group: Any
    timeout_s: float = 120.0
    _gathered = False  # whether the source of the update under way has been iterated

    def send_weights(self) -> None:
        """See vLLM's; the source is iterated to its end on every rank, whatever happens, because its gathering is a collective."""
        self._gathered = False
        try:
            super().send_weights()
        except BaseException:
            if not self._gathered:
                for _ in self.source or ():
                    pass
            raise

    def _broadcast(self, source: WeightSource, meta: list[ParamMeta]) -> None:
        if not self.is_sender:
            super()._broadcast(source, meta)
            return
        group, fingerprint = self.model_update_group, ModelFingerprint()
        self._gathered = True
        stream = iter(source)

        def summed() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in stream:
                fingerprint.add(name, tensor)
                yield name, tensor

        way_out = WayOut(lambda: self.client.broken, lambda: _leave(group), timeout_s=self.timeout_s)
        try:
            with way_out:
                super()._broadcast(summed(), meta)  # type: ignore[arg-type]  # it is only iterated
                torch.accelerator.synchronize()  # what is enqueued can still hang
        except RuntimeError:  # NCCL's, of a group that was aborted
            if way_out.reason is None:
                raise
        finally:
            for _ in stream:  # the other ranks gather to the end
                pass
        if way_out.reason is not None:
            self.model_update_group = None
            raise WeightUpdateError(f"the broadcast was given up: {_told(self.client.failures) or way_out.reason}")
        self.client.checksum = fingerprint.checksum()


class NcclWeightSender:
    """One learner rank's end of the broadcast; made and used on every rank at the same time.

    Args:
        source: of this rank's weights.
        actors: name and handle of every rollout actor, the same on each rank.
        workers_per_actor: tensor_parallel_size of an engine.
        rank: of this learner process; rank 0 sends.
        master_address: of rank 0's node.
        master_port: free on that node.
        timeout_s: for one call to the actors.
    """

    def __init__(
        self,
        source: DeepSpeedWeightSource,
        *,
        actors: Mapping[str, Any],
        workers_per_actor: int,
        rank: int,
        master_address: str,
        master_port: int,
        timeout_s: float,
    ) -> None:
        self._client = RolloutActorsClient(actors, timeout_s=timeout_s)
        self._engine: CheckedTrainerEngine | None = None
        info = NCCLTrainerInitInfo(
            rank=rank, master_address=master_address, master_port=master_port, world_size=1 + len(actors) * workers_per_actor
        )
        try:
            self._engine = CheckedTrainerEngine.trainer_init(info, client=self._client, source=source)
            self._engine.timeout_s = timeout_s
        except WeightUpdateError:
            if not self._client.failures:
                raise

    @property
    def failures(self) -> dict[str, str]:
        """Why each actor that has failed did, by name."""
        return dict(self._client.failures)

    def send(self, version: int) -> BroadcastOutcome:
        """Broadcast this version; every rank must call it, and none of them is left in a collective.

        Args:
            version: of the learner's weights.

        Returns:
            On rank 0 what became of it; a group in which somebody failed must be made anew.

        Raises:
            WeightUpdateError: when it failed by no actor's fault.
        """
        if self._engine is None:
            raise WeightUpdateError(f"the broadcast group was never whole: {_told(self.failures)}")
        self._client.version = version
        try:
            self._engine.send_weights()
            delivered = True
        except WeightUpdateError:
            self._client.abandon()
            if not self.failures:
                raise
            delivered = False
        return BroadcastOutcome(checksum=self._client.checksum, failures=self.failures, delivered=delivered)

    def close(self) -> None:
        """Leave the group."""
        if self._engine is not None:
            self._engine.shutdown()


def _leave(group: Any) -> None:
    """Tell the receivers, then abort: the store stays up while this process lives."""
    abandon_broadcast(group)
    group.destroy()


def _told(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {failure}" for name, failure in failures.items())


def _line(error: Exception) -> str:
    return str(getattr(error, "cause", None) or error).strip().splitlines()[0]

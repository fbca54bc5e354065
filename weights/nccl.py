"""The GPU transport: vLLM's own NCCL broadcast from learner rank 0 to every engine worker.

Owns the client that drives several rollout actors as one, and the group's geometry. Imports vLLM, so only learners on GPUs import it.
Must not know what a rollout actor does besides the four weight calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from vllm.distributed.weight_transfer.base import WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from weights.manifest import WeightUpdateError
from weights.source import DeepSpeedWeightSource

WeightSource.register(DeepSpeedWeightSource)


class RolloutActorsClient:
    """vLLM's weight-sync client over rollout actors: each call goes to all of them and has one deadline.

    Args:
        actors: name and Ray handle of each; a handle has init_weight_transfer, start_weight_update, receive_weights and
            finish_weight_update, as RolloutEngine has them.
        timeout_s: for one call, and for the update as a whole at the engines' end.
    """

    def __init__(self, actors: Mapping[str, Any], *, timeout_s: float) -> None:
        self._actors = dict(actors)
        self._timeout_s = timeout_s
        self.version = 0  # stamped by the next finish_weight_update

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
        """Let every actor take part in the broadcast."""
        self._wait("receive the weights", {name: actor.receive_weights.remote(update_info) for name, actor in self._actors.items()})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close every actor's model, stamp the version and resume."""
        version = self.version if weight_version is None else int(weight_version)
        self._wait("finish the update", {name: actor.finish_weight_update.remote(version) for name, actor in self._actors.items()})

    def _wait(self, what: str, calls: dict[str, Any]) -> None:
        """Wait for all calls. Raises WeightUpdateError naming the actors that failed or did not answer."""
        ready, late = ray.wait(list(calls.values()), num_returns=len(calls), timeout=self._timeout_s)
        names = {reference: name for name, reference in calls.items()}
        failures = {names[reference]: f"no answer within {self._timeout_s:.0f} s" for reference in late}
        for reference in ready:
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                failures[names[reference]] = str(error)
        if failures:
            told = "; ".join(f"{name}: {failure}" for name, failure in failures.items())
            raise WeightUpdateError(f"could not {what}: {told}")


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

    Raises:
        WeightUpdateError: when an actor does not connect in time.
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
        info = NCCLTrainerInitInfo(
            rank=rank, master_address=master_address, master_port=master_port, world_size=1 + len(actors) * workers_per_actor
        )
        self._engine = NCCLTrainerWeightTransferEngine.trainer_init(info, client=self._client, source=source)

    def send(self, version: int) -> None:
        """Broadcast this version; every rank must call it.

        Args:
            version: of the learner's weights.

        Raises:
            WeightUpdateError: naming the actors that failed; the group is of no use then and must be made anew.
        """
        self._client.version = version
        self._engine.send_weights()

    def close(self) -> None:
        """Leave the group."""
        self._engine.shutdown()

"""How a new version gets from the learner group into the rollout fleet: through the object store, or broadcast by NCCL.

Owns which of the two a device uses. The only place that knows both ends of the way.
"""

from __future__ import annotations

import time
from typing import Protocol

from cluster.fleet import RolloutFleet
from conf.schema import Config, Device
from learner.group import LearnerGroup


class WeightTransport(Protocol):
    """Brings versions into service."""

    async def deliver(self, version: int) -> float:
        """Bring the learner's weights into every engine.

        Args:
            version: that they become.

        Returns:
            Seconds during which generation was paused.
        """


class ObjectStoreTransport:
    """Verified buckets through Ray's object store, staged in shared memory beside each engine.

    Args:
        learner: gives out the weights.
        fleet: takes them.
    """

    def __init__(self, learner: LearnerGroup, fleet: RolloutFleet) -> None:
        self._learner = learner
        self._fleet = fleet

    async def deliver(self, version: int) -> float:
        """See WeightTransport.deliver."""
        manifest, buckets = await self._learner.publish(version)
        return await self._fleet.update_weights(manifest, buckets)


class NcclTransport:
    """vLLM's own broadcast from learner rank 0 to all engine workers; the group is made anew when the fleet has changed.

    Args:
        learner: rank 0 sends, the other ranks take part in the gather.
        fleet: receives.
        workers_per_actor: GPUs of an engine.
    """

    def __init__(self, learner: LearnerGroup, fleet: RolloutFleet, *, workers_per_actor: int) -> None:
        self._learner = learner
        self._fleet = fleet
        self._workers_per_actor = workers_per_actor
        self._connected: list[str] = []

    async def deliver(self, version: int) -> float:
        """See WeightTransport.deliver."""
        actors = {replica.name: replica.actor for replica in self._fleet.replicas}
        if list(actors) != self._connected:
            await self._learner.connect_broadcast(actors, workers_per_actor=self._workers_per_actor)
            self._connected = list(actors)
        begin = time.monotonic()
        await self._learner.broadcast(version)
        return time.monotonic() - begin


def make_transport(config: Config, learner: LearnerGroup, fleet: RolloutFleet) -> WeightTransport:
    """Choose the transport of a run.

    Args:
        config: whose device decides.
        learner: one end.
        fleet: the other end.

    Returns:
        NCCL between GPUs, the object store otherwise.
    """
    if config.cluster.device is Device.gpu:
        return NcclTransport(learner, fleet, workers_per_actor=config.rollout.tensor_parallel_size)
    return ObjectStoreTransport(learner, fleet)

"""The Ray shell of one learner rank.

Owns the rank's life in Ray and the way of its weights into the object store. Must not know the rollout actors or replay: shards
arrive as tables, weights leave as references.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle

from conf.schema import Config
from weights.manifest import BroadcastOutcome, EarlyPart, Part, Shipment

if TYPE_CHECKING:
    from algorithms.types import Trajectory
    from learner.worker import LearnerWorker
    from tasks.worked import WorkedAnswer


@ray.remote(concurrency_groups={"control": 3})  # one may wait for the disk
class LearnerRank:
    """One rank of the learner group; methods are those of LearnerWorker.

    Args:
        config: of the run.
        model_path: Hugging Face folder that the policy starts from.
        rank: from 0.
    """

    def __init__(self, config: Config, model_path: str, rank: int) -> None:
        self._config = config
        self._model_path = model_path
        self._rank = rank
        self._worker: LearnerWorker | None = None
        self._state = "waiting for its group"
        self._whole: Shipment | None = None  # the last version that somebody wanted whole

    def __repr__(self) -> str:
        """Name the role, the rank and its node in Ray's logs and dashboard, which ask once, at the start: nothing that changes."""
        rank = f"{self._rank}/{self._config.learner.num_ranks}"
        return f"LearnerRank(rank={rank}, node={ray.util.get_node_ip_address()})"

    @ray.method(concurrency_group="control")
    def meeting_point(self) -> tuple[str, int]:
        """Pick where the group meets, when this is rank 0.

        Returns:
            This node's address and a port that is free right now.
        """
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, master_address: str, master_port: int) -> None:
        """Load the policy and meet the other ranks."""
        from learner.deepspeed_engine import RankAddress  # torch and DeepSpeed are of the rank's process, not of its caller's
        from learner.worker import LearnerWorker

        self._state = "starting"
        address = RankAddress(
            rank=self._rank, world_size=self._config.learner.num_ranks, master_address=master_address, master_port=master_port
        )
        self._worker = LearnerWorker(self._config, self._model_path, address)
        self._state = "ready"

    def update(self, shard: pa.Table, step: int) -> dict[str, float]:
        """Take one training step's optimizer updates; see LearnerWorker.update."""
        return self._ready().update(shard, step=step)

    def supervised_update(self, shard: pa.Table, step: int) -> float:
        """Take one step towards given responses; see LearnerWorker.supervised_update."""
        return self._ready().supervised_update(shard, step=step)

    def score(self, trajectories: pa.Table, temperature: float | None, mask_banned: bool) -> list[NDArray[np.float32]]:
        """Log-probs of given responses, of TRAJECTORY_SCHEMA; see LearnerWorker.score."""
        return self._ready().score_table(trajectories, temperature=temperature, mask_banned=mask_banned)

    def first_usable(self, answers: list[WorkedAnswer]) -> tuple[int, Trajectory]:
        """The first worked answer that can be used, as a trajectory; see LearnerWorker.first_usable."""
        return self._ready().first_usable(answers)

    @ray.method(num_returns="streaming")
    def publish(self, version: int, compare: bool) -> Iterator[EarlyPart | Shipment]:
        """Copy the weights out of training, and put what has changed into the object store bucket by bucket; see WeightPublisher.publish.

        Args:
            version: policy version that they are.
            compare: find out what has changed.

        Returns:
            On rank 0, as they are known: the parts for a receiver of the version before, when compared. Then all of it. Nothing elsewhere.
        """
        self._whole = None
        yield from self._ready().publisher.publish(version, compare=compare, put=ray.put)

    @ray.method(concurrency_group="control")
    def whole_weights(self) -> Shipment:
        """Put the last published version into the object store, all of it; answered while a step is computed.

        Returns:
            A reference to each bucket.
        """
        manifest, buckets = self._ready().publisher.whole()
        if self._whole is None or self._whole.manifest != manifest:
            self._whole = Shipment(
                manifest=manifest,
                parts=(Part.whole,) * len(buckets),
                payloads=tuple(ray.put(bucket) for bucket in buckets),
                nbytes=manifest.nbytes,
            )
        return self._whole

    @ray.method(concurrency_group="control")
    def release_files(self) -> None:
        """Remove the published weights, before this process is ended without being asked."""
        if self._worker is not None:
            self._worker.publisher.close()

    def connect_broadcast(self, actors: Mapping[str, ActorHandle], workers_per_actor: int, address: str, port: int) -> dict[str, str]:
        """Meet the rollout engines for NCCL broadcasts; see LearnerWorker.connect_broadcast."""
        timeout_s = self._config.weights.timeout_s
        return self._ready().connect_broadcast(actors, workers_per_actor=workers_per_actor, address=address, port=port, timeout_s=timeout_s)

    def broadcast(self, version: int) -> BroadcastOutcome:
        """Send the weights to every connected engine; see LearnerWorker.broadcast."""
        return self._ready().broadcast(version)

    def begin_checkpoint(self, folder: str) -> None:
        """Copy weights and optimizer state, and start to write them; see LearnerWorker.begin_checkpoint."""
        self._ready().begin_checkpoint(folder)

    @ray.method(concurrency_group="control")
    def finish_checkpoint(self) -> str | None:
        """Wait until they are on the disk, beside training; see LearnerWorker.finish_checkpoint."""
        return self._ready().finish_checkpoint()

    def load_checkpoint(self, folder: str) -> None:
        """Go on from a checkpoint; see LearnerWorker.load_checkpoint."""
        self._ready().load_checkpoint(folder)

    def export_model(self, folder: str) -> None:
        """Write a Hugging Face folder; see LearnerWorker.export_model."""
        self._ready().export_model(folder)

    @ray.method(concurrency_group="control")
    def health(self) -> dict[str, Any]:
        """Answer at once, whatever the rank is doing.

        Returns:
            Rank, state, process id and node.
        """
        return {"rank": self._rank, "state": self._state, "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    def _ready(self) -> LearnerWorker:
        if self._worker is None:
            raise RuntimeError(f"learner rank {self._rank} is {self._state}: call start first")
        return self._worker

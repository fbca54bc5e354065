"""The client that drives several rollout actors through a broadcast: one deadline a call, and errors that name the actor.

The broadcast itself needs GPUs; the actors here are real Ray actors that take the four calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import ray

from weights.manifest import WeightUpdateError
from weights.source import DeepSpeedWeightSource


@ray.remote(num_cpus=0)
class Actor:
    def __init__(self, fault: str = "") -> None:
        self._fault = fault
        self.calls: list[tuple] = []

    def init_weight_transfer(self, init_info: dict, *, timeout_s: float) -> None:
        self.calls.append(("init", init_info["rank_offset"]))

    def start_weight_update(self, *, timeout_s: float) -> None:
        self.calls.append(("start",))

    def receive_weights(self, update_info: dict) -> None:
        if self._fault == "fails":
            raise RuntimeError("no such parameter")
        if self._fault == "stalls":
            time.sleep(60)
        self.calls.append(("receive", update_info["names"]))

    def finish_weight_update(self, version: int) -> None:
        self.calls.append(("finish", version))

    def seen(self) -> list[tuple]:
        return self.calls


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_calls_reach_every_actor_in_order_with_ranks_of_their_own() -> None:
    from weights.nccl import RolloutActorsClient

    actors = {"r0": Actor.remote(), "r1": Actor.remote()}
    client = RolloutActorsClient(actors, timeout_s=60.0)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 5, "master_address": "x", "master_port": 1})
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.version = 7
    client.finish_weight_update()
    seen = ray.get([actor.seen.remote() for actor in actors.values()], timeout=60)
    assert seen[0] == [("init", 1), ("start",), ("receive", ["a"]), ("finish", 7)]
    assert seen[1] == [("init", 3), ("start",), ("receive", ["a"]), ("finish", 7)]


def test_failures_and_stalls_are_told_by_name_within_the_deadline() -> None:
    from weights.nccl import RolloutActorsClient

    actors = {"good": Actor.remote(), "bad": Actor.remote("fails"), "slow": Actor.remote("stalls")}
    ray.get([actor.seen.remote() for actor in actors.values()], timeout=60)
    client = RolloutActorsClient(actors, timeout_s=3.0)
    began = time.monotonic()
    with pytest.raises(WeightUpdateError) as failure:
        client.update_weights({"names": ["a"]})
    assert time.monotonic() - began < 10
    assert "slow: no answer within 3 s" in str(failure.value)
    assert "no such parameter" in str(failure.value)
    assert "good" not in str(failure.value)


def test_the_source_counts_as_vllm_s_on_gpu_learners() -> None:
    from vllm.distributed.weight_transfer.base import WeightSource

    import weights.nccl  # noqa: F401  (registers it)

    assert issubclass(DeepSpeedWeightSource, WeightSource)

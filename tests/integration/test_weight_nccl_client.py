"""The sender's end of a broadcast: errors that name the actor, a way out when one of them leaves, the gathering always to its end.

NCCL itself needs GPUs: here an event stands for it, that waits for all members as NCCL does, until it is aborted. The actors are real Ray
actors that take the five calls, and vLLM's own sender drives them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch

from tests.tiny_weights import TensorSource
from weights.fingerprint import ModelFingerprint
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
        if self._fault == "does not start":
            raise RuntimeError("it does not pause")
        self.calls.append(("start",))

    def receive_weights(self, update_info: dict) -> None:
        if self._fault == "fails":
            raise RuntimeError("no such parameter")
        if self._fault == "stalls":
            time.sleep(60)
        if self._fault == "dies":
            os._exit(1)
        self.calls.append(("receive", update_info["names"]))

    def finish_weight_update(self, version: int, checksum: str) -> None:
        if self._fault == "lies":
            raise RuntimeError(f"it answers 0123456789abcdef for the checksum of its weights, {checksum} was sent")
        self.calls.append(("finish", version, checksum))

    def abandon_weight_update(self, reason: str) -> None:
        self.calls.append(("abandon", reason))

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
    client.version, client.checksum = 7, "0123456789abcdef"
    client.finish_weight_update()
    seen = ray.get([actor.seen.remote() for actor in actors.values()], timeout=60)
    assert seen[0] == [("init", 1), ("start",), ("receive", ["a"]), ("finish", 7, "0123456789abcdef")]
    assert seen[1] == [("init", 3), ("start",), ("receive", ["a"]), ("finish", 7, "0123456789abcdef")]


def test_failures_and_stalls_are_told_by_name_within_the_deadline() -> None:
    from weights.nccl import RolloutActorsClient

    actors = {"good": Actor.remote(), "bad": Actor.remote("fails"), "slow": Actor.remote("stalls")}
    ray.get([actor.seen.remote() for actor in actors.values()], timeout=60)
    client = RolloutActorsClient(actors, timeout_s=3.0)
    began = time.monotonic()
    client.update_weights({"names": ["a"]})  # one has received them, and goes on
    assert time.monotonic() - began < 10
    assert client.failures == {"bad": "no such parameter", "slow": "no answer within 3 s"}
    client.finish_weight_update("3")
    assert ray.get(actors["good"].seen.remote(), timeout=60)[-1] == ("finish", 3, "")
    client = RolloutActorsClient({"bad": actors["bad"]}, timeout_s=3.0)
    with pytest.raises(WeightUpdateError, match="could not receive the weights: bad: no such parameter"):
        client.update_weights({"names": ["a"]})


class Group:
    """In place of PyNcclCommunicator: a broadcast ends when every actor has received, or when it is aborted."""

    def __init__(self, complete: bool) -> None:
        self.group, self.store = self, torch.distributed.HashStore()
        self._ended = threading.Event()
        self.aborted = False
        if complete:
            self._ended.set()

    def broadcast(self, tensor: torch.Tensor, *, src: int) -> None:
        assert self._ended.wait(60), "nobody came to abort"
        if self.aborted:
            raise RuntimeError("NCCL error: unhandled system error")

    def destroy(self) -> None:
        self.aborted = True
        self._ended.set()


def sender(actors: dict[str, Any], *, complete: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Group, TensorSource]:
    """A NcclWeightSender over a group without NCCL."""
    from vllm.distributed.weight_transfer import nccl_engine

    import weights.nccl as module

    group = Group(complete)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: group)

    def produce(*, iterator: Any, group: Group, src: int, **_: Any) -> None:
        for _, tensor in iterator:
            group.broadcast(tensor, src=src)

    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", produce)
    monkeypatch.setattr(module.torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(module.CheckedTrainerEngine, "_post_send_sync", lambda self: None)
    source = TensorSource((name, torch.ones(5) * index) for index, name in enumerate("abc"))
    made = module.NcclWeightSender(
        source, actors=actors, workers_per_actor=1, rank=0, master_address="x", master_port=1, timeout_s=20.0  # type: ignore[arg-type]
    )
    return made, group, source


@pytest.mark.parametrize("fault", ["dies", "fails", "does not start"])
def test_a_receiver_that_leaves_is_told_and_nobody_is_left_in_the_collective(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actors = {"good": Actor.remote(), "bad": Actor.remote(fault)}
    ray.get([actor.seen.remote() for actor in actors.values()], timeout=60)
    made, group, source = sender(actors, complete=False, monkeypatch=monkeypatch)
    began = time.monotonic()
    outcome = made.send(4)
    assert time.monotonic() - began < 15
    assert not outcome.delivered and list(outcome.failures) == ["bad"]
    assert group.aborted == (fault != "does not start")
    assert group.store.check(["rethinker/broadcast_abandoned"]) == group.aborted, "the receivers are told to leave as well"
    assert source.yielded == ["a", "b", "c"], "the other ranks gather to the end, so this one does"
    assert ray.get(actors["good"].seen.remote(), timeout=60)[-1][0] == "abandon"


@pytest.mark.parametrize("fault", ["", "lies"])
def test_the_checksum_of_what_was_sent_is_what_every_actor_must_answer(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actors = {"good": Actor.remote(), "other": Actor.remote(fault)}
    made, group, source = sender(actors, complete=True, monkeypatch=monkeypatch)
    outcome = made.send(4)
    expected = ModelFingerprint()
    for name, tensor in source.tensors.items():
        expected.add(name, tensor)
    assert outcome.delivered and outcome.checksum == expected.checksum() and not group.aborted
    assert ray.get(actors["good"].seen.remote(), timeout=60)[-1] == ("finish", 4, expected.checksum())
    assert list(outcome.failures) == (["other"] if fault else [])


def test_the_source_counts_as_vllm_s_on_gpu_learners() -> None:
    from vllm.distributed.weight_transfer.base import WeightSource

    import weights.nccl  # noqa: F401  (registers it)

    assert issubclass(DeepSpeedWeightSource, WeightSource)

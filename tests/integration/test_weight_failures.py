"""Whoever dies or stalls in the middle of a sync: over within the deadline, told by name, and the others go on.

One story with the real engines: two rollout actors and a learner; one after the other is stopped, replaced, killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from actors.worker import RolloutRequest
from cluster.fleet import NoReplicaError, RolloutFleet
from cluster.probe import EngineProbe, make_probe
from cluster.replica import Replica, ReplicaLostError
from cluster.transport import StagedTransport
from conf.loading import load_config
from learner.group import LearnerGroup, LearnerGroupError
from tasks.dataset import PromptDataset
from tasks.quickstart import build_data
from tasks.quickstart.data import QuickstartSizes
from tests.integration.conftest import ROOT
from tests.integration.test_weights_arrive import examples, table
from tests.integration.tiny_models import build
from weights.manifest import SenderLostError

DEADLINE_S = 8.0
GRACE_S = 6.0  # beyond the deadline: for the probe, and for a machine with other work
TOLERANCE = 1e-4
SIZES = QuickstartSizes(shapes=8, digits=8, arithmetic=8)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=6, include_dashboard=False, object_store_memory=256 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


class Stage:
    """The roles, and the processes of each."""

    def __init__(self, config: Any, model: Path) -> None:
        self.config = config
        self.learner = LearnerGroup(config, str(model))
        self.fleet = RolloutFleet(config, str(model), None)
        prompts = PromptDataset(config.data.path, config.data)
        self.prompts = prompts
        self.prompt = prompts[0]
        _, self.answers = examples(config)
        self.steps = 0

    async def start(self) -> None:
        """Start the roles, then choose the probe."""
        await asyncio.gather(self.learner.start(), self.fleet.start(version=0))
        self.probe: EngineProbe = await make_probe(self.config, self.learner, self.prompts)
        self.transport = StagedTransport(self.learner, self.fleet, self.probe)

    async def train(self) -> None:
        """One step that changes every weight."""
        await self.learner.supervised_update([ray.put(table(self.answers))], step=self.steps)
        self.steps += 1

    async def processes(self, replica: Replica) -> tuple[psutil.Process, list[psutil.Process]]:
        """The actor and its engine."""
        actor = psutil.Process((await replica.actor.health.remote())["pid"])
        engine = [child for child in actor.children(recursive=True) if "VLLM" in child.name() or "VLLM" in " ".join(child.cmdline())]
        assert engine, [child.cmdline() for child in actor.children(recursive=True)]
        return actor, engine

    async def version(self, replica: Replica) -> int:
        return (await replica.actor.health.remote())["version"]


@contextlib.asynccontextmanager
async def at_most(seconds: float) -> AsyncIterator[None]:
    """Fail, and don't wait for ever, when the block takes longer."""
    begin = time.monotonic()
    async with asyncio.timeout(seconds + 60):
        yield
    took = time.monotonic() - begin
    assert took < seconds, f"took {took:.1f} s"


async def gone(processes: list[psutil.Process]) -> None:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=15)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


async def when(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def a_stalled_replica(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """SIGSTOP of actor and engine: the sync takes the deadline once, what ran there is told, the other replica serves."""
    stalled, other = stage.fleet.replicas
    actor, engine = await stage.processes(stalled)
    requests = [RolloutRequest(group_id=f"{stage.prompt.prompt_id}@0", turn=0, prompt=stage.prompt, seed=1)]
    for process in (actor, *engine):
        process.send_signal(signal.SIGSTOP)
    rolling = asyncio.create_task(stage.fleet.rollout(requests))
    await stage.train()
    async with at_most(DEADLINE_S + GRACE_S):
        report = await stage.transport.deliver(2)
    assert stage.fleet.replicas == [other] and report.num_replicas == 1
    assert report.mismatch < TOLERANCE
    assert f"{stalled.name} is out of service: waited {DEADLINE_S:g} s for {stalled.name} to read version 2 ahead" in caplog.text
    with pytest.raises(ReplicaLostError, match=stalled.name):
        await asyncio.wait_for(rolling, 1)
    await gone([actor, *engine])
    async with at_most(DEADLINE_S):
        await stage.train()
        assert (await stage.transport.deliver(3)).mismatch < TOLERANCE


async def a_late_replica(stage: Stage) -> Replica:
    """It has the version in service before anybody can give it a prompt, and takes changes from then on when files can't be read."""
    async with at_most(120):
        joined = await stage.transport.join()
    assert stage.fleet.replicas[-1] is joined and await stage.version(joined) == 3
    expected = await stage.probe.expected(stage.learner)
    assert await stage.probe.mismatch(stage.fleet, joined, expected) < TOLERANCE
    joined.reads_files = False
    await stage.train()
    report = await stage.transport.deliver(4)  # whole
    assert report.sent_bytes > 0 and report.mismatch < TOLERANCE
    assert (await stage.transport.deliver(5)).sent_bytes == 0  # nothing has changed
    return joined


async def a_killed_engine(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Its engine's process is killed while it takes the weights; the actor itself lives."""
    killed, other = stage.fleet.replicas
    actor, engine = await stage.processes(killed)
    for process in engine:
        process.send_signal(signal.SIGSTOP)  # it stays in mid-sync until it is killed
    await stage.train()
    async with at_most(DEADLINE_S + GRACE_S):
        syncing = asyncio.create_task(stage.transport.deliver(6))
        await when(lambda: other.checksum == stage.transport._published.manifest.checksum if stage.transport._published else False)
        for process in engine:
            process.kill()
        report = await syncing
    assert stage.fleet.replicas == [other] and report.mismatch < TOLERANCE
    assert f"{killed.name} is out of service" in caplog.text
    await gone([actor, *engine])


async def a_killed_learner(stage: Stage) -> None:
    """Killed in mid-sync, before and after it has given the weights out: its error, and the engines serve the old weights."""
    (replica,) = stage.fleet.replicas
    before = await replica.actor.score.remote(stage.prompt, [5, 6, 7])
    pid = (await stage.learner.health())[0]["pid"]
    shipment = await stage.learner.whole_weights()
    os.kill(pid, signal.SIGSTOP)
    async with at_most(DEADLINE_S + GRACE_S):
        syncing = asyncio.create_task(stage.transport.deliver(7))
        await asyncio.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LearnerGroupError, match=r"learner rank 0 failed to (say how it is|publish version 7)"):
            await syncing
        # What had been put into the object store before may be there still: then it arrives whole.
        with contextlib.suppress(SenderLostError):
            assert (await stage.fleet.update_weights(replica, shipment)).checksum == shipment.manifest.checksum
    assert stage.fleet.replicas == [replica] and await stage.version(replica) == 6
    after = await replica.actor.score.remote(stage.prompt, [5, 6, 7])
    np.testing.assert_allclose(after, before, atol=TOLERANCE)


async def no_replica(stage: Stage) -> None:
    """Without any, the next prompts are refused with the reasons."""
    (replica,) = stage.fleet.replicas
    actor, engine = await stage.processes(replica)
    actor.kill()
    requests = [RolloutRequest(group_id=f"{stage.prompt.prompt_id}@1", turn=0, prompt=stage.prompt, seed=1)]
    async with at_most(30):
        with pytest.raises(ReplicaLostError, match=replica.name):
            await stage.fleet.rollout(requests)
    with pytest.raises(NoReplicaError, match=r"no rollout actor is left in service \(rollout actor 0: .*; rollout actor 1: .*"):
        await stage.fleet.rollout(requests)
    await gone([actor, *engine])


def test_whoever_dies_or_stalls_costs_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build(tmp_path / "model", tied=True)
    data = build_data(tmp_path / "data", train_sizes=SIZES, test_sizes=SIZES).train
    words = ["rollout.num_actors=2", "learner.warmup_fraction=0", "learner.learning_rate=0.001", "learner.threads=1", "rollout.threads=1"]
    words += ["rollout.kv_cache_bytes=67108864", "coldstart.steps=0", f"weights.timeout_s={DEADLINE_S}", "weights.bucket_bytes=2097152"]
    config = load_config(str(ROOT / "conf/experiment/quickstart.yaml"), [*words, f"model.path={model}", f"data.path={data}"])

    async def story() -> None:
        stage = Stage(config, model)
        try:
            await stage.start()
            await stage.train()
            report = await stage.transport.deliver(1)
            assert report.num_replicas == 2 and report.mismatch < TOLERANCE
            await a_stalled_replica(stage, caplog)
            await a_late_replica(stage)
            await a_killed_engine(stage, caplog)
            await a_killed_learner(stage)
            await no_replica(stage)
        finally:
            await stage.fleet.close()
            await stage.learner.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(story(), 420))

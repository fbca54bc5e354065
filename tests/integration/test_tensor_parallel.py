"""One engine over two worker processes: the same log-probs as Hugging Face's, before and after its weights are replaced."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import psutil

from actors.engine import RolloutEngine
from tests.integration.test_weight_sync import TOLERANCE, Served
from tests.integration.tiny_models import DEVICE, MODEL, ROLLOUT, Judge, build, perturb
from weights.staging import StagingArea


def test_two_workers_are_one_engine(tmp_path: Path) -> None:
    folder = build(tmp_path / "model", tied=True)
    judge = Judge(folder)
    rollout = dataclasses.replace(ROLLOUT, tensor_parallel_size=2)
    engine = RolloutEngine(str(folder), model=MODEL, rollout=rollout, device=DEVICE, seed=1, name="r0")
    before = set(psutil.Process().children(recursive=True))

    async def check(served: Served) -> None:
        await engine.start()
        try:
            workers = [p for p in set(psutil.Process().children(recursive=True)) - before if "Worker_TP" in p.name()]
            assert len(workers) == 2, [p.name() for p in workers]
            assert await served.difference() < TOLERANCE
            perturb(judge.model)
            assert await served.difference() > 1e-2, "the perturbation must be one that an update can miss"
            await served.update()  # checks what the workers answer of the version and of the checksum
            assert await served.difference() < TOLERANCE
        finally:
            await engine.close()

    with asyncio.Runner() as runner, StagingArea() as area:
        runner.run(check(Served(engine, judge, area, runner)))
    assert not [p for p in set(psutil.Process().children(recursive=True)) - before if "VLLM" in p.name()]

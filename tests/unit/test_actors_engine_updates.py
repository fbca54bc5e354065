"""The order of an update's steps at vLLM's door, without vLLM: verified before the pause, answered before it ends, never left open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest

from actors.engine.updates import WeightUpdater
from weights.manifest import BucketManifest, WeightManifest, WeightUpdateError
from weights.staging import StagedUpdate

BUCKET = BucketManifest(names=("a",), dtypes=("float32",), shapes=((25,),), nbytes=164, checksum="0123456789abcdef")
MANIFEST = WeightManifest(version=7, buckets=(BUCKET,), num_parameters=1)


class FakeVllm:
    """AsyncLLM and its parts in one; notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: set[str] = set()
        self.answers: dict[str, list[Any]] = {
            "apply_weights": [MANIFEST.checksum], "weights_checksum": [MANIFEST.checksum], "abort_weight_update": [False]
        }  # fmt: skip
        self.renderer = self.engine_core = self

    async def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fails:
            raise RuntimeError(f"{call} failed")

    async def clear_mm_cache_async(self) -> None:
        """Part of the pause."""

    async def pause_scheduler_async(self, *, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", True)
        await self._note("pause")

    async def start_weight_update(self) -> None:
        await self._note("start")

    async def finish_weight_update(self, *, weight_version: str) -> None:
        await self._note(f"finish {weight_version}")

    async def update_weight_version(self, version: str) -> None:
        await self._note(f"stamp {version}")

    async def resume_generation(self) -> None:
        await self._note("resume")

    async def collective_rpc(self, method: str, args: tuple = ()) -> list[Any]:
        await self._note(method)
        return self.answers.get(method, [None])


class Updater(WeightUpdater):
    """Loading is one call, and imports nothing."""

    async def _load(self, update_info: dict[str, Any], deadline: float) -> None:
        try:
            await self._step("load", self._engine._note("load"), deadline)
        except WeightUpdateError as error:
            await self._recover(error)


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognising vLLM's own error for a dead engine would import it."""
    monkeypatch.setattr("actors.engine.errors.engine_deaths", contextlib.nullcontext)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_staged_update_is_verified_before_the_pause_and_answered_before_the_resumption() -> None:
    engine = FakeVllm()
    receipt = run(Updater(engine, "engine 3").apply(StagedUpdate(paths=("/a",), manifest=MANIFEST), 5))
    assert engine.calls == ["verify_weights", "pause", "apply_weights", "stamp 7", "resume"]
    assert (receipt.version, receipt.checksum) == (7, MANIFEST.checksum)


@pytest.mark.parametrize("answer", ["fedcba9876543210", None])
def test_a_staged_update_that_one_worker_answers_wrongly_stays_paused(answer: str | None) -> None:
    engine = FakeVllm()
    engine.answers["apply_weights"] = [MANIFEST.checksum, answer]  # of two workers
    updater = Updater(engine, "engine 3")
    with pytest.raises(WeightUpdateError, match=f"engine 3 answers .*{answer}"):
        run(updater.apply(StagedUpdate(paths=("/a",), manifest=MANIFEST), 5))
    assert engine.calls == ["verify_weights", "pause", "apply_weights", "stamp 7"]
    assert updater.version == 0 and updater.mixed is not None


@pytest.mark.parametrize("step", ["apply_weights", "stamp 7"])
@pytest.mark.parametrize("intact", [True, False])
def test_a_staged_update_that_breaks_off_resumes_only_with_whole_old_weights(intact: bool, step: str) -> None:
    engine = FakeVllm()
    engine.fails = {step}
    engine.answers["abort_weight_update"] = [True, intact]  # of two workers
    updater = Updater(engine, "engine 3")
    with pytest.raises(WeightUpdateError, match=r"engine 3 could not (load|stamp) the weights"):
        run(updater.apply(StagedUpdate(paths=("/a",), manifest=MANIFEST), 5))
    steps = ["verify_weights", "pause", "apply_weights", "stamp 7"]
    assert engine.calls == [*steps[: steps.index(step) + 1], "abort_weight_update", *(["resume"] if intact else [])]
    assert (updater.mixed is None) == intact and updater.version == 0


def test_a_refused_update_never_pauses() -> None:
    engine = FakeVllm()
    engine.fails = {"verify_weights"}
    with pytest.raises(WeightUpdateError, match="engine 3 could not verify the weights"):
        run(Updater(engine, "engine 3").apply(StagedUpdate(paths=("/a",), manifest=MANIFEST), 5))
    assert engine.calls == ["verify_weights"]


def test_reading_ahead_is_one_call_that_pauses_nothing() -> None:
    engine = FakeVllm()
    run(Updater(engine, "engine 3").expect(("/a",), 7, 5))
    assert engine.calls == ["expect_weights"]


@pytest.mark.parametrize("answer", [MANIFEST.checksum, "fedcba9876543210", None])
def test_a_broadcast_is_answered_by_a_checksum_too(answer: str | None) -> None:
    engine = FakeVllm()
    engine.answers["weights_checksum"] = [MANIFEST.checksum, answer]  # of two workers
    updater = Updater(engine, "engine 3")

    async def work() -> None:
        await updater.begin(5)
        await updater.receive({})
        if answer == MANIFEST.checksum:
            await updater.finish(7, MANIFEST.checksum)
            assert updater.version == 7 and updater.mixed is None
        else:
            with pytest.raises(WeightUpdateError, match=f"engine 3 answers .*{answer}"):
                await updater.finish(7, MANIFEST.checksum)
            assert updater.version == 0 and updater.mixed is not None
        await updater.begin(5)  # nothing is held

    run(work())
    right = ["resume"] if answer == MANIFEST.checksum else []
    assert engine.calls == ["pause", "start", "load", "finish 7", "weights_checksum", *right, "pause", "start"]


def test_an_abandoned_broadcast_is_closed_and_the_next_one_can_begin() -> None:
    engine = FakeVllm()
    updater = Updater(engine, "engine 3")

    async def work() -> None:
        await updater.abandon("nothing is under way")
        assert engine.calls == []
        await updater.begin(5)
        await updater.abandon("rollout actor 1 died")
        assert engine.calls == ["pause", "start", "abort_weight_update"]
        assert updater.mixed is not None and "engine 3 holds layers of two versions" in updater.mixed
        await updater.begin(5)
        await updater.receive({})
        await updater.finish(7, MANIFEST.checksum)
        assert updater.mixed is None and engine.calls[-1] == "resume"

    run(work())


def test_a_trainer_that_never_finishes_breaks_the_engine_after_the_deadline() -> None:
    updater = Updater(FakeVllm(), "engine 3")

    async def work() -> None:
        await updater.begin(0.05)
        await asyncio.sleep(0.2)
        assert updater.broken == "engine 3: the trainer did not finish its weight update within 0 s"

    run(work())

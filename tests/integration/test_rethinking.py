"""Forced rethinking on the real engine: y2 is sampled from y1's own tokens, with a prefix cache and without one, and across an update."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.engine import Completion, RolloutEngine
from actors.worker import RolledOut, RolloutRequest, RolloutWorker
from algorithms.types import Prompt, Trajectory
from conf.schema import AlgorithmConfig, Config, Device, Dtype, EvaluationMode, ModelConfig, RethinkingConfig, RewardConfig, RolloutConfig
from tasks.grading import GraderPool
from tasks.prompts import PromptEncoder, load_tokenizer
from tests.integration.tiny_models import perturb
from tests.tiny_learner import PlainLearner
from tests.tiny_weights import publish_once
from weights.staging import StagedUpdate, StagingArea

TOLERANCE = 2e-4
BLOCK = 128  # tokens in a block of vLLM's KV cache on CPUs; only whole blocks are found again
MODEL = ModelConfig(dtype=Dtype.float32, max_prompt_tokens=256, max_response_tokens=640, min_pixels=56 * 56, max_pixels=112 * 112)
ROLLOUT = RolloutConfig(max_concurrent_sequences=32, max_batched_tokens=4096, kv_cache_bytes=64 * 2**20, timeout_s=90.0)
RETHINKING = RethinkingConfig(enabled=True, fraction=1.0)
SAMPLES = 6


@dataclass
class Stage:
    """A running engine, a worker on it, and Hugging Face's view of the weights in service."""

    engine: RolloutEngine
    judge: PlainLearner
    grader: GraderPool
    tokenizer: object
    allowed: list[int]
    runner: asyncio.Runner
    folder: Path
    cached: bool

    def worker(self, engine: object | None = None, **changes: object) -> RolloutWorker:
        return RolloutWorker(
            engine=engine or self.engine,
            encoder=PromptEncoder(self.tokenizer, suffix=" Answer.", max_prompt_tokens=256, min_pixels=56 * 56, max_pixels=112 * 112),
            grader=self.grader,
            allowed_token_ids=self.allowed,
            algorithm=AlgorithmConfig(samples_per_prompt=SAMPLES),
            model=MODEL,
            rollout=ROLLOUT,
            reward_config=RewardConfig(),
            rethinking=dataclasses.replace(RETHINKING, **changes),
        )

    def prompt(self, num_images: int, *, name: str = "") -> Prompt:
        paths = []
        for index in range(num_images):
            pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path := self.folder / f"{index}.png")
            paths.append(str(path))
        # a question of its own for each test: else the cache has what another test went on with, triggers included
        question = "<image>" * num_images + name + "What is shown, and how many of it? " * 4
        return Prompt(
            prompt_id=f"p{num_images}{name}", question=question, image_paths=tuple(paths), answer="8", category="c", source="s"
        )  # fmt: skip

    def rollout(self, worker: RolloutWorker, prompt: Prompt) -> RolledOut:
        return self.runner.run(worker.rollout(RolloutRequest(group_id=f"{prompt.prompt_id}@0", turn=0, prompt=prompt, seed=5)))

    def difference(self, trajectory: Trajectory) -> float:
        """The largest gap between the trajectory's log-probs and Hugging Face's of the same tokens."""
        expected = self.judge.logprobs(trajectory).detach().numpy()
        return float(np.abs(trajectory.behavior_logprobs - expected)[trajectory.loss_mask].max())


@pytest.fixture(scope="module", params=["prefix cache", pytest.param("no prefix cache", marks=pytest.mark.long)])
def stage(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    tokenizer = load_tokenizer(tiny_model)
    engine = RolloutEngine(str(tiny_model), model=MODEL, rollout=ROLLOUT, device=Device.cpu, seed=1)
    cached = request.param == "prefix cache"
    if not cached:
        engine._arguments["enable_prefix_caching"] = False
    # Few ids, so that a model of random weights comes to an end after some 200 tokens
    texts = [*RETHINKING.self_verification, *RETHINKING.self_correction, *RETHINKING.self_questioning]
    triggers = {token for text in texts for token in tokenizer.encode(text, add_special_tokens=False)}
    allowed = sorted({*range(300, 480), *triggers, tokenizer.eos_token_id})
    judge = PlainLearner(tiny_model, Config(model=MODEL))
    judge.model.eval()
    judge.allowed[:] = False
    judge.allowed[allowed] = True
    grader = GraderPool(processes=1, timeout_s=5.0, memory_bytes=2 * 2**30)
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            yield Stage(engine, judge, grader, tokenizer, allowed, runner, tmp_path_factory.mktemp("images"), cached)
        finally:
            runner.run(engine.close())
            grader.close()


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_y2_is_sampled_from_y1_s_own_tokens(stage: Stage, num_images: int) -> None:
    rolled = stage.rollout(stage.worker(), stage.prompt(num_images))
    forced = [t for t in rolled.group.trajectories if len(t.segments) == 3]
    assert len(forced) == rolled.counts.forced >= 2, rolled.counts
    for trajectory in rolled.group.trajectories:
        assert stage.difference(trajectory) < TOLERANCE
        assert trajectory.num_response_tokens <= MODEL.max_response_tokens
    assert {t.finish_reason for t in rolled.group.trajectories} <= {"stop", "length"}


def test_the_prefix_cache_has_y1(stage: Stage) -> None:
    """By vLLM's own count of each request: all whole blocks of the prompt and y1; not only the prompt's."""
    worker, seconds = _tapped(stage, lambda: None)
    prompt = stage.prompt(1, name="cache")
    rolled = stage.rollout(worker, prompt)
    longest = 0
    for trajectory in (t for t in rolled.group.trajectories if len(t.segments) == 3):
        second = seconds[trajectory.trajectory_id]
        y1_end, trigger_end = (segment.end for segment in trajectory.segments[:2])
        before_trigger = second.num_prompt_tokens - (trigger_end - y1_end)
        # y1's last token of its own was read before its end of sequence was sampled, so all of y1 is there
        assert second.num_cached_tokens == (before_trigger // BLOCK * BLOCK if stage.cached else 0)
        longest = max(longest, second.num_cached_tokens - (before_trigger - y1_end))
    assert (longest > 0) is stage.cached, "no y1 is long enough to fill a block: this test would prove nothing"
    fraction = rolled.counts.metrics()["rethinking/cached_fraction"]
    assert (fraction > 0.5) is stage.cached


def test_an_update_between_y1_and_y2(stage: Stage) -> None:
    """The cache is emptied, y2 is of the new version, and each part's log-probs are those of the weights that sampled it."""
    before = {name: value.detach().clone() for name, value in stage.judge.model.state_dict().items()}
    version = stage.engine.version

    async def update() -> None:
        perturb(stage.judge.model)
        weights = [(name, parameter.detach()) for name, parameter in stage.judge.model.named_parameters()]
        with StagingArea() as area:
            publication = publish_once(weights, version + 1, 2 * 2**20, str(area.folder))
            staged = StagedUpdate(paths=publication.paths, manifest=publication.manifest)
            await stage.engine.update_weights(staged, version + 1, timeout_s=30.0)

    worker, _ = _tapped(stage, update)
    rolled = stage.rollout(worker, stage.prompt(1, name="update"))
    after = {name: value.detach().clone() for name, value in stage.judge.model.state_dict().items()}
    forced = [t for t in rolled.group.trajectories if len(t.segments) == 3]
    assert len(forced) >= 2 and rolled.counts.cached_tokens <= rolled.counts.prefix_tokens // 2
    for trajectory in forced:
        y1_end = trajectory.segments[0].end
        assert [(span.start, span.version) for span in trajectory.version_spans] == [(0, version), (y1_end, version + 1)]
        assert trajectory.policy_version == version
        for weights, part in ((before, slice(0, y1_end)), (after, slice(y1_end, None))):
            stage.judge.model.load_state_dict(weights)
            expected = stage.judge.logprobs(trajectory).detach().numpy()
            gap = np.abs(trajectory.behavior_logprobs - expected)[part][trajectory.loss_mask[part]]
            assert gap.max() < TOLERANCE


def test_a_forced_evaluation_leaves_an_answer_without_an_end_as_it_was(stage: Stage) -> None:
    """What weights of noise answer greedily hardly ever has an end; test_exact_resume.py has a model whose answers go on."""
    prompt = stage.prompt(3)
    answers = [
        stage.runner.run(stage.worker().answer(prompt, max_response_tokens=MODEL.max_response_tokens, mode=mode))
        for mode in (EvaluationMode.none, EvaluationMode.forced, EvaluationMode.bound)
    ]
    none, forced, bound = answers
    assert none.forced is None and forced.response == bound.response
    if forced.passed_over:
        assert forced.passed_over in ("unfinished", "empty") and forced.response == none.response
    else:
        assert forced.response.startswith(none.response) and forced.num_response_tokens > none.num_response_tokens


def _tapped(stage: Stage, before_second: Callable) -> tuple[RolloutWorker, dict[str, Completion]]:
    """A worker whose engine does something once before the first y2, and what it returned for each y2, by trajectory."""
    seconds: dict[str, Completion] = {}
    once = asyncio.Lock()
    done: list[bool] = []

    class Tap:
        async def generate(self, *args: object, request_id: str, **settings: object) -> list[Completion]:
            if request_id.endswith("/y2"):
                async with once:
                    if not done and (waiting := before_second()) is not None:
                        await waiting
                    done.append(True)
            completions = await stage.engine.generate(*args, request_id=request_id, **settings)
            if request_id.endswith("/y2"):
                seconds[request_id.removesuffix("/y2")] = completions[0]
            return completions

    return stage.worker(Tap()), seconds

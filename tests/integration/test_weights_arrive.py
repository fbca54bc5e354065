"""After a sync through the whole way, the engine's log-probs are the learner's: every ZeRO stage, tied or untied embeddings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from algorithms.schema import to_record_batch
from algorithms.types import Prompt, Trajectory
from cluster.fleet import RolloutFleet
from cluster.transport import make_transport
from conf.loading import load_config
from conf.schema import Config
from learner.group import LearnerGroup
from tasks.dataset import PromptDataset
from tasks.prompts import PromptEncoder, load_tokenizer
from tasks.quickstart import build_data
from tasks.quickstart.data import QuickstartSizes
from tasks.worked import supervised_trajectories, worked_answers
from tests.integration.conftest import ROOT
from tests.integration.tiny_models import build

TOLERANCE = 1e-4
SIZES = QuickstartSizes(shapes=8, digits=8, arithmetic=8)
STAGES = {"tied": (0, 3), "untied": (1, 2)}  # test_weight_source.py has the sender's half for every stage with both


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("data"), train_sizes=SIZES, test_sizes=SIZES).train


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=256 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


def settings(folder: Path, data: Path, stage: int) -> Config:
    words = ["learner.num_ranks=2", f"learner.zero_stage={stage}", "learner.warmup_fraction=0", "learner.threads=1"]
    words += [f"learner.learning_rate={0.01 * (1 + stage)}"]  # each stage ends elsewhere, so that a sync that didn't happen shows
    words += ["rollout.threads=1", "rollout.kv_cache_bytes=67108864", "weights.bucket_bytes=2097152", "coldstart.steps=0"]
    return load_config(str(ROOT / "conf/experiment/quickstart.yaml"), [*words, f"model.path={folder}", f"data.path={data}"])


def examples(config: Config) -> tuple[list[Prompt], list[Trajectory]]:
    """Questions with their worked answers: a text, one picture, two, three."""
    tokenizer = load_tokenizer(config.model.path)
    encoder = PromptEncoder.of_run(tokenizer, config.model, config.data)
    answers = worked_answers(config.data.path, config.data, examples=len(PromptDataset(config.data.path)), rethinking_fraction=0.0, seed=1)
    by_images = {len(answer.prompt.image_paths): answer for answer in answers}
    chosen = [by_images[count] for count in sorted(by_images)]
    assert len(chosen) >= 3
    return [answer.prompt for answer in chosen], supervised_trajectories(chosen, encoder=encoder, tokenizer=tokenizer)


def table(trajectories: list[Trajectory]) -> pa.Table:
    return pa.Table.from_batches([to_record_batch(trajectories)])


@pytest.mark.long  # test_main_job.py probes every sync of a run, test_weight_source.py has the sender in every stage
@pytest.mark.parametrize("embeddings", STAGES)
def test_the_engine_scores_as_the_learner_after_every_sync(embeddings: str, data: Path, tmp_path: Path) -> None:
    folder = build(tmp_path / "model", tied=embeddings == "tied")

    async def check() -> None:
        fleet = RolloutFleet(settings(folder, data, 0), str(folder), None)
        try:
            await fleet.start(version=0)
            for version, stage in enumerate(STAGES[embeddings], start=1):
                await check_stage(fleet, stage, version)
        finally:
            await fleet.close()

    async def check_stage(fleet: RolloutFleet, stage: int, version: int) -> None:
        config = settings(folder, data, stage)
        prompts, trajectories = examples(config)
        (replica,) = fleet.replicas

        async def differences(expected: list[np.ndarray]) -> list[float]:
            pairs = zip(prompts, trajectories, strict=True)
            scored = [await replica.actor.score.remote(prompt, t.response_token_ids.tolist()) for prompt, t in pairs]
            return [float(np.abs(np.array(ours) - theirs).max()) for ours, theirs in zip(scored, expected, strict=True)]

        learner = LearnerGroup(config, str(folder))
        try:
            await learner.start()
            await learner.supervised_update([ray.put(table(trajectories[:1])), ray.put(table(trajectories[1:]))], step=0)  # a rank of text
            expected = await learner.score(table(trajectories), temperature=1.0, mask_banned=False)
            assert max(await differences(expected)) > 100 * TOLERANCE, "the step must change what the engine has"
            await make_transport(config, learner, fleet).deliver(version)
            assert max(await differences(expected)) < TOLERANCE, f"ZeRO stage {stage}"
        finally:
            await learner.close()

    asyncio.run(asyncio.wait_for(check(), 420))

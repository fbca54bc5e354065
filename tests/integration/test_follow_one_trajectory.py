"""What is trained is what was rolled out: trajectories followed by their ids from vLLM's output into the learner's micro-batches."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import AutoImageProcessor

from actors.actor import Outbox
from actors.engine import Completion, RolloutEngine
from actors.worker import RolloutRequest, RolloutWorker
from algorithms.schema import sampled_from_arrow
from algorithms.types import RolloutGroup, SampledTrajectory
from conf.loading import load_config
from learner.collate import MicroBatch
from learner.deepspeed_engine import RankAddress
from learner.worker import LearnerWorker
from replay.actor import ReplayActor
from tasks.dataset import PromptDataset
from tasks.grading import GraderPool
from tasks.images import load_image_ref
from tasks.prompts import PromptEncoder, allowed_token_ids, load_tokenizer
from tasks.quickstart import build_data
from tasks.quickstart.data import QuickstartSizes
from tests.integration.conftest import ROOT, free_port


class TappedEngine:
    """The real engine, with a copy of everything that it returns."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        self.outputs: dict[str, list[Completion]] = {}

    async def generate(self, *args, request_id: str, **kwargs) -> list[Completion]:
        completions = await self._engine.generate(*args, request_id=request_id, **kwargs)
        self.outputs[request_id] = completions
        return completions


@dataclasses.dataclass
class Journey:
    """What each station saw."""

    engine: dict[str, list[Completion]]
    groups: list[RolloutGroup]
    drawn: list[SampledTrajectory]
    batches: list[tuple[list, MicroBatch]]  # (the collator's rows, what it made of them)
    image_processor: object


@pytest.fixture(scope="module")
def journey(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """Six prompts, of text, one, two and three images, all the way."""
    data = build_data(
        tmp_path_factory.mktemp("data"),
        train_sizes=QuickstartSizes(shapes=20, digits=20, arithmetic=20),
        test_sizes=QuickstartSizes(shapes=2, digits=2, arithmetic=2),
    )
    # long enough that some responses of an untrained model end by themselves: rewards, and so advantages, must differ
    words = ["replay.mode=none", "algorithm.samples_per_prompt=4", "model.max_response_tokens=160"]
    config = load_config(str(ROOT / "conf/experiment/quickstart.yaml"), words)
    config = dataclasses.replace(config, reward=dataclasses.replace(config.reward, invalid_reward=-0.1))
    by_images: dict[int, list] = {}
    for prompt in PromptDataset(data.train):
        by_images.setdefault(len(prompt.image_paths), []).append(prompt)
    prompts = [by_images[0][0], by_images[1][0], by_images[1][1], by_images[2][0], by_images[2][1], by_images[3][0]]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        replay = ReplayActor.remote(config.replay, seed=1)
        engine, groups = asyncio.run(_roll_out(config, tiny_model, replay, prompts))
        draw = replay.sample.options(num_returns=2).remote(
            num_updates=1, batch_size=24, num_shards=1, policy_version=0, num_groups=6, timeout_s=60
        )
        _, shard = ray.get(draw, timeout=90)
    finally:
        ray.shutdown()
    address = RankAddress(rank=0, world_size=1, master_address="127.0.0.1", master_port=free_port())
    worker = LearnerWorker(config, tiny_model, address)
    collator = worker._update._collator
    batches: list[tuple[list, MicroBatch]] = []
    collate = collator.collate

    def tapped(trajectories, rows, *args, **kwargs):
        batch = collate(trajectories, rows, *args, **kwargs)
        batches.append(([[trajectories[s] for response in row.responses for s in response] for row in rows], batch))
        return batch

    collator.collate = tapped
    worker.update(shard, step=0)
    worker.close()
    size = {"shortest_edge": config.model.min_pixels, "longest_edge": config.model.max_pixels}
    return Journey(
        engine=engine,
        groups=groups,
        drawn=sampled_from_arrow(shard),
        batches=batches,
        image_processor=AutoImageProcessor.from_pretrained(tiny_model, size=size),
    )


async def _roll_out(config, model: Path, replay, prompts) -> tuple[dict[str, list[Completion]], list[RolloutGroup]]:
    engine = RolloutEngine(str(model), model=config.model, rollout=config.rollout, device=config.cluster.device, seed=1)
    grader = GraderPool(processes=1, timeout_s=5.0, memory_bytes=2 * 2**30)
    tokenizer = load_tokenizer(model)
    try:
        await engine.start()
        tap = TappedEngine(engine)
        worker = RolloutWorker(
            engine=tap,
            encoder=PromptEncoder.of_run(tokenizer, config.model, config.data),
            grader=grader,
            allowed_token_ids=allowed_token_ids(tokenizer),
            algorithm=config.algorithm,
            model=config.model,
            rollout=config.rollout,
            reward_config=config.reward,
        )
        requests = [RolloutRequest(group_id=f"{p.prompt_id}@0", turn=index, prompt=p, seed=index) for index, p in enumerate(prompts)]
        groups = [rolled.group for rolled in await asyncio.gather(*(worker.rollout(request) for request in requests))]
        outbox = Outbox(replay, timeout_s=60)
        await asyncio.gather(*(outbox.deliver(group, turn) for turn, group in enumerate(groups)))
        return tap.outputs, groups
    finally:
        grader.close()
        await engine.close()


def test_replay_hands_out_what_the_engine_sampled(journey: Journey):
    assert len(journey.drawn) == 24
    for sample in journey.drawn:
        trajectory = sample.trajectory
        group_id, index = trajectory.trajectory_id.rsplit("/", 1)
        completion = journey.engine[group_id][int(index)]
        np.testing.assert_array_equal(trajectory.response_token_ids, completion.token_ids)
        np.testing.assert_array_equal(trajectory.behavior_logprobs, completion.logprobs)
        assert trajectory.version_spans == completion.version_spans
        assert trajectory.finish_reason == completion.finish_reason


def test_advantages_are_those_of_the_own_group(journey: Journey):
    spread = 0
    for group in journey.groups:
        rewards = np.array([t.reward for t in group.trajectories])
        drawn = {s.trajectory.trajectory_id: s.trajectory.advantage for s in journey.drawn}
        for trajectory, expected in zip(group.trajectories, rewards - rewards.mean(), strict=True):
            assert drawn[trajectory.trajectory_id] == pytest.approx(expected, abs=1e-6)
        spread += len(set(rewards)) > 1
    assert spread > 0, "no group has a spread of rewards: this test would prove nothing"


def test_the_learner_trains_on_those_tokens_with_those_log_probs_and_advantages(journey: Journey):
    trained: dict[str, int] = {}
    for rows, batch in journey.batches:
        numbers = list(dict.fromkeys(batch.samples.tolist()))
        trajectories = {t.trajectory_id: t for row in rows for t in row}
        for number in numbers:
            mine = batch.samples == number
            tokens = batch.labels[mine].numpy()
            owner = [
                t
                for t in trajectories.values()
                if np.array_equal(t.response_token_ids, tokens)
                and np.array_equal(t.behavior_logprobs, batch.behavior_logprobs[mine].numpy())
            ]
            assert len(owner) == 1, "the learner's tokens belong to no rolled out trajectory"
            np.testing.assert_array_equal(batch.versions[mine].numpy(), owner[0].token_versions)
            assert float(batch.coefficients[mine][0]) == pytest.approx(owner[0].advantage, abs=1e-6)
            trained[owner[0].trajectory_id] = len(tokens)
    expected = {s.trajectory.trajectory_id: s.trajectory.num_response_tokens for s in journey.drawn if s.trajectory.advantage != 0}
    assert trained == expected and expected


def test_the_learner_sees_the_pictures_of_the_prompt(journey: Journey):
    seen = 0
    for rows, batch in journey.batches:
        refs = list(dict.fromkeys(image for row in rows for t in row for image in t.images))
        if not refs:
            continue
        pixels = journey.image_processor(images=[load_image_ref(ref).image for ref in refs], return_tensors="pt")
        torch.testing.assert_close(batch.pixel_values, pixels["pixel_values"])
        torch.testing.assert_close(batch.image_grid_thw, pixels["image_grid_thw"])
        seen += len(refs)
    assert seen > 0

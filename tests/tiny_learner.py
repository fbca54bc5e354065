"""Samples for the quickstart's tiny model, and the plain PyTorch that the learner is judged by.

The judge does everything the plain way: one padded-free row a trajectory, its images through the vision tower each time, logits at
every position, torch's AdamW and clipping.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

from algorithms.schema import SAMPLE_FIELDS, SAMPLE_SCHEMA, to_record_batch
from algorithms.types import ImageRef, SampledTrajectory, Trajectory
from conf.schema import AlgorithmConfig, Config, Dtype, LearnerConfig, ModelConfig, RunConfig
from learner.collate import Collator, TokenIds, patch_values
from learner.images import ImageCache
from tasks.images import load_image, load_image_ref
from tasks.prompts import allowed_token_ids, load_tokenizer
from tests.fakes import make_trajectory

PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}


def make_config(*, learner: dict | None = None, algorithm: dict | None = None, dtype: Dtype = Dtype.float32) -> Config:
    """A run of ten steps over the tiny model."""
    return Config(
        run=RunConfig(num_steps=10),
        model=ModelConfig(dtype=dtype, max_response_tokens=32, min_pixels=PIXELS["shortest_edge"], max_pixels=PIXELS["longest_edge"]),
        algorithm=AlgorithmConfig(**(algorithm or {})),
        learner=LearnerConfig(**{"learning_rate": 5e-5, "timeout_s": 120.0, "microbatch_tokens": 512, **(learner or {})}),
    )


def noise_image(folder: Path, number: int, *, side: int = 64) -> ImageRef:
    """A picture of its own; 64 pixels a side are 4 image tokens, 112 are 16."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    path = folder / f"{number}-{side}.png"
    Image.fromarray(pixels).save(path)
    return load_image(path).ref


def make_trajectories(
    model_path: Path, images: tuple[ImageRef, ...], *, number: int, samples: int = 2, lengths: tuple[int, int] = (3, 12)
) -> list[Trajectory]:
    """A group with a prompt of random text and these images, and random responses."""
    tokenizer = load_tokenizer(model_path)
    vision = [tokenizer.convert_tokens_to_ids(token) for token in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")]
    random = np.random.default_rng(number)
    words = random.integers(10, 500, random.integers(8, 20)).tolist()
    prompt = np.array([*words[:3], *(vision * len(images)), *words[3:]], np.int32)

    def one(index: int) -> Trajectory:
        count = int(random.integers(*lengths))
        return make_trajectory(
            prompt_id=f"p{number}", index=index, response_tokens=count, advantage=float(random.normal()), prompt_token_ids=prompt,
            images=images, response_token_ids=random.integers(10, 500, count).astype(np.int32),
            behavior_logprobs=(-6.2 + 0.5 * random.normal(size=count)).astype(np.float32), loss_mask=random.random(count) > 0.2,
        )  # fmt: skip

    return [one(index) for index in range(samples)]


def as_samples(trajectories: list[Trajectory], *, update: int = 0) -> list[SampledTrajectory]:
    """Every trajectory drawn once, uniformly."""
    return [
        SampledTrajectory(
            trajectory=trajectory, key=key, probability=1 / len(trajectories), table_size=len(trajectories), age=0, times_sampled=1,
            fresh=True, update=update,
        )
        for key, trajectory in enumerate(trajectories)
    ]  # fmt: skip


def sample_table(samples: list[SampledTrajectory]) -> pa.Table:
    """Samples as the learner receives them."""
    trajectories = to_record_batch([sample.trajectory for sample in samples])
    draws = [pa.array([getattr(sample, field.name) for sample in samples], field.type) for field in SAMPLE_FIELDS]
    return pa.Table.from_arrays([*trajectories.columns, *draws], schema=SAMPLE_SCHEMA)


class PlainLearner:
    """Hugging Face's forward pass and torch's optimizer, without any of the learner's shortcuts."""

    def __init__(self, model_path: Path, config: Config):
        self.config = config
        self.model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).train()
        self.processor = AutoImageProcessor.from_pretrained(model_path, size=PIXELS)
        self.allowed = torch.zeros(self.model.config.text_config.vocab_size, dtype=torch.bool)
        self.allowed[allowed_token_ids(load_tokenizer(model_path))] = True
        settings = config.learner
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def logprobs(self, trajectory: Trajectory, *, temperature: float = 1.0, masked: bool = True) -> torch.Tensor:
        """[R] under the sampling distribution; masked False: over the whole vocabulary."""
        image_token = self.model.config.image_token_id
        pixels = {}
        counts = iter(())
        if trajectory.images:
            pictures = [load_image_ref(ref).image for ref in trajectory.images]
            pixels = dict(self.processor(images=pictures, return_tensors="pt"))
            counts = iter((pixels["image_grid_thw"].prod(1) // 4).tolist())
        prompt = [token for pad in trajectory.prompt_token_ids.tolist() for token in [pad] * (next(counts) if pad == image_token else 1)]
        ids = torch.tensor([prompt + trajectory.response_token_ids.tolist()])
        logits = self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == image_token).int(), use_cache=False, **pixels
        ).logits[0, len(prompt) - 1 : -1]
        logits = logits / temperature
        if masked:
            logits = logits.masked_fill(~self.allowed, -torch.inf)
        return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]

    def step(self, trajectories: list[Trajectory], *, rate: float, proximal: list[torch.Tensor] | None = None) -> float:
        """One update on the token-mean clipped surrogate; the gradient's norm before clipping."""
        algorithm = self.config.algorithm
        total = sum(int(trajectory.loss_mask.sum()) for trajectory in trajectories)
        loss = torch.zeros(())
        for index, trajectory in enumerate(trajectories):
            mask = torch.from_numpy(trajectory.loss_mask.copy())
            policy = self.logprobs(trajectory)[mask]
            old = policy.detach() if proximal is None else proximal[index][mask]
            behavior = torch.from_numpy(trajectory.behavior_logprobs.copy())[mask]
            if not algorithm.sequence_ratio_low <= float((policy.detach() - behavior).mean().exp()) <= algorithm.sequence_ratio_high:
                continue
            weight = (old - behavior).exp().clamp(max=algorithm.behavior_ratio_cap)
            ratio = (policy - old).exp()
            clipped = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
            loss = loss - (weight * torch.minimum(ratio * trajectory.advantage, clipped * trajectory.advantage)).sum() / total
        return self.apply(loss, rate)

    def apply(self, loss: torch.Tensor, rate: float) -> float:
        """Backward, clip, step."""
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.learner.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return float(norm)

    def weights(self) -> dict[str, torch.Tensor]:
        """By Hugging Face's names."""
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


def without_masks(trajectories: list[Trajectory]) -> list[Trajectory]:
    """The same with every token trained."""
    return [dataclasses.replace(t, loss_mask=np.ones(t.num_response_tokens, np.bool_)) for t in trajectories]


def make_collator(model_path: Path, *, always_run_vision: bool = False, capacity_bytes: int = 2**26) -> Collator:
    """For the tiny model."""
    config = AutoConfig.from_pretrained(model_path)
    return Collator(
        ImageCache(AutoImageProcessor.from_pretrained(model_path, size=PIXELS), capacity_bytes=capacity_bytes),
        TokenIds.of(config),
        patch_values=patch_values(config.vision_config),
        merge_size=config.vision_config.spatial_merge_size,
        always_run_vision=always_run_vision,
    )

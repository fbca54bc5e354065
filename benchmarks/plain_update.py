"""The update as a plain DeepSpeed user writes it: padded rows sorted by length, every row's own image, logits everywhere."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from algorithms.batching import split_microbatches
from algorithms.corrections import truncated_weights
from algorithms.losses import clipped_surrogate
from algorithms.schema import from_arrow
from algorithms.types import Trajectory
from conf.schema import Config
from tasks.images import load_image_ref


class PlainDeepSpeedLoop:
    """One optimizer update a call on the same trajectories, with the learner's loss, optimizer and micro-batch size.

    Args:
        config: of the run; ZeRO stage and optimizer settings are taken from it.
        shard: of TRAJECTORY_SCHEMA and more columns.
    """

    def __init__(self, config: Config, shard: pa.Table) -> None:
        import deepspeed

        self._config = config
        self._trajectories = from_arrow(shard)
        model = AutoModelForImageTextToText.from_pretrained(config.model.path, dtype=torch.float32, attn_implementation="sdpa").train()
        self._image_token_id = model.config.image_token_id
        size = {"shortest_edge": config.model.min_pixels, "longest_edge": config.model.max_pixels}
        processor = AutoImageProcessor.from_pretrained(config.model.path, size=size)
        refs = {image.sha256: image for trajectory in self._trajectories for image in trajectory.images}
        self._images = {key: processor(images=[load_image_ref(ref).image], return_tensors="pt") for key, ref in refs.items()}
        self._merge = model.config.vision_config.spatial_merge_size**2
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learner.learning_rate, betas=config.learner.betas, weight_decay=0.0)
        settings = {
            "train_batch_size": 1,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.learner.max_grad_norm,
            "zero_optimization": {"stage": config.learner.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

    def update(self) -> None:
        """Forward, loss and backward of every micro-batch, then one step."""
        sequences = [self._sequence(trajectory) for trajectory in self._trajectories]
        batches = split_microbatches([len(ids) for ids in sequences], max_tokens=self._config.learner.microbatch_tokens)
        total = sum(trajectory.num_response_tokens for trajectory in self._trajectories)
        for number, rows in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            loss = self._loss([self._trajectories[row] for row in rows], [sequences[row] for row in rows]) / total
            self._engine.backward(loss)
        self._engine.step()

    def _sequence(self, trajectory: Trajectory) -> list[int]:
        """Prompt with its image pads expanded, then the response."""
        counts = iter(int(self._images[image.sha256]["image_grid_thw"].prod()) // self._merge for image in trajectory.images)
        prompt = [i for token in trajectory.prompt_token_ids for i in [int(token)] * (next(counts) if token == self._image_token_id else 1)]
        return prompt + trajectory.response_token_ids.tolist()

    def _loss(self, trajectories: list[Trajectory], sequences: list[list[int]]) -> torch.Tensor:
        """The summed surrogate of a padded micro-batch."""
        width = max(map(len, sequences))
        ids = torch.zeros(len(sequences), width, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        mask = torch.zeros(len(sequences), width, dtype=torch.bool)
        behavior = torch.zeros(len(sequences), width)
        for row, (trajectory, sequence) in enumerate(zip(trajectories, sequences, strict=True)):
            end, start = len(sequence), len(sequence) - trajectory.num_response_tokens
            ids[row, :end] = torch.tensor(sequence)
            attention[row, :end] = 1
            mask[row, start:end] = True
            behavior[row, start:end] = torch.from_numpy(np.array(trajectory.behavior_logprobs))
        images = [self._images[image.sha256] for trajectory in trajectories for image in trajectory.images]
        logits = self._engine(
            input_ids=ids,
            attention_mask=attention,
            mm_token_type_ids=(ids == self._image_token_id).long(),
            pixel_values=torch.cat([image["pixel_values"] for image in images]),
            image_grid_thw=torch.cat([image["image_grid_thw"] for image in images]),
            use_cache=False,
        ).logits[:, :-1]
        logprobs = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)[mask[:, 1:]]
        advantages = torch.tensor([t.advantage for t in trajectories])[:, None].expand(-1, width - 1)[mask[:, 1:]]
        algorithm = self._config.algorithm
        weights = truncated_weights(logprobs.detach(), behavior[:, 1:][mask[:, 1:]], cap=algorithm.behavior_ratio_cap)
        clip = {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}
        return clipped_surrogate(logprobs, logprobs.detach(), weights, advantages, **clip).sum()

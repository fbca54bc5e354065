"""One learner rank as a plain object: a policy under DeepSpeed that updates, scores, publishes and saves.

Owns how the rank is put together from the run's settings. Must not know Ray, the rollout engines or replay.

Except where said otherwise a method is a collective: all ranks of the group call it together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from algorithms.schema import from_arrow, sampled_from_arrow
from algorithms.types import Trajectory
from conf.schema import Config
from learner.collate import Collator, TokenIds, patch_values
from learner.deepspeed_engine import TORCH_DTYPES, RankAddress, TrainingEngine
from learner.export import keep_model_files, write_model
from learner.images import ImageCache
from learner.policy import PolicyModel
from learner.update import PolicyUpdate
from tasks.prompts import PromptEncoder, allowed_token_ids, load_tokenizer
from tasks.worked import WorkedAnswer, first_usable
from weights.manifest import BroadcastOutcome
from weights.publisher import WeightPublisher
from weights.source import DeepSpeedWeightSource

if TYPE_CHECKING:
    from weights.nccl import NcclWeightSender

IMAGE_CACHE_BYTES = 256 * 2**20
"""Pixel values kept between steps: some ten images of the largest size, or most of a small data set."""


class LearnerWorker:
    """One rank of the learner group.

    Args:
        config: of the run.
        model_path: Hugging Face folder that the policy starts from.
        address: this rank's place in the group; the constructor returns when all ranks have met.
    """

    def __init__(self, config: Config, model_path: str | Path, address: RankAddress):
        from transformers import AutoImageProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading and saving: noise in the log of an actor
        self._config = config
        self._model_path = Path(model_path)
        if config.learner.threads:
            torch.set_num_threads(config.learner.threads)
        torch.manual_seed(config.run.seed)
        self._tokenizer = load_tokenizer(str(model_path))
        self._policy = PolicyModel.load(
            model_path,
            dtype=TORCH_DTYPES[config.model.dtype],
            temperature=config.rollout.temperature,
            allowed_token_ids=allowed_token_ids(self._tokenizer),
            gradient_checkpointing=config.learner.gradient_checkpointing,
            freeze_vision=config.model.freeze_vision,
            trust_remote_code=config.model.trust_remote_code,
        )
        model_config = self._policy.model.config
        processor = AutoImageProcessor.from_pretrained(
            model_path, size={"shortest_edge": config.model.min_pixels, "longest_edge": config.model.max_pixels}, local_files_only=True
        )
        collator = Collator(
            ImageCache(processor, capacity_bytes=IMAGE_CACHE_BYTES),
            TokenIds.of(model_config),
            patch_values=patch_values(model_config.vision_config),
            merge_size=model_config.vision_config.spatial_merge_size,
            always_run_vision=address.world_size > 1,
        )
        self._engine = TrainingEngine(self._policy, config.learner, dtype=config.model.dtype, device=config.cluster.device, address=address)
        self._update = PolicyUpdate(
            self._engine,
            collator,
            algorithm=config.algorithm,
            learner=config.learner,
            importance_exponent=config.replay.importance_exponent,
            max_response_tokens=config.model.max_response_tokens,
            num_steps=config.run.num_steps,
            rethinking=config.rethinking,
        )
        self.publisher = WeightPublisher(
            self.weight_source(), bucket_bytes=config.weights.bucket_bytes, sends=self._engine.address.rank == 0
        )
        self._sender: NcclWeightSender | None = None  # on GPUs, once connected
        self._saving: Path | None = None  # where the checkpoint is that is being written

    def update(self, shard: pa.Table, *, step: int) -> dict[str, float]:
        """Take one training step's optimizer updates.

        Args:
            shard: this rank's samples, of SAMPLE_SCHEMA; may be empty.
            step: training step, from 0.

        Returns:
            Step metrics over all ranks, as in PolicyUpdate.update.
        """
        return self._update.update(sampled_from_arrow(shard), step=step)

    def supervised_update(self, shard: pa.Table, *, step: int) -> float:
        """Take one optimizer step towards given responses.

        Args:
            shard: this rank's trajectories, of TRAJECTORY_SCHEMA; may be empty.
            step: optimizer step, from 0.

        Returns:
            Mean negative log-likelihood over all ranks before the step, nats a token.
        """
        return self._update.supervised(from_arrow(shard), step=step)

    def score(
        self, trajectories: Sequence[Trajectory], *, temperature: float | None = None, mask_banned: bool = True
    ) -> list[NDArray[np.float32]]:
        """Compute the policy's log-probs of given responses.

        Args:
            trajectories: this rank's.
            temperature: another one than the sampling distribution's; None: that one.
            mask_banned: False: under the distribution over the whole vocabulary.

        Returns:
            [R] each, nats.
        """
        return self._update.score(trajectories, temperature=temperature, mask_banned=mask_banned)

    def score_table(
        self, trajectories: pa.Table, *, temperature: float | None = None, mask_banned: bool = True
    ) -> list[NDArray[np.float32]]:
        """The same of a table of TRAJECTORY_SCHEMA."""
        return self.score(from_arrow(trajectories), temperature=temperature, mask_banned=mask_banned)

    def first_usable(self, answers: Sequence[WorkedAnswer]) -> tuple[int, Trajectory]:
        """Find the first worked answer that a run with these settings can use.

        Args:
            answers: at least one.

        Returns:
            Its place among the answers, and the answer as a trajectory.

        Raises:
            BadPromptError: when there is none.
        """
        model = self._config.model
        encoder = PromptEncoder.of_run(self._tokenizer, model, self._config.data)
        return first_usable(answers, encoder=encoder, tokenizer=self._tokenizer, max_response_tokens=model.max_response_tokens)

    def weight_source(self) -> DeepSpeedWeightSource:
        """The policy's full named tensors, as Hugging Face names them."""
        return DeepSpeedWeightSource(
            self._policy.model,
            zero_stage=self._config.learner.zero_stage,
            rank=self._engine.address.rank,
            tied=self._policy.model.config.tie_word_embeddings,
        )

    def connect_broadcast(
        self, actors: Mapping[str, Any], *, workers_per_actor: int, address: str, port: int, timeout_s: float
    ) -> dict[str, str]:
        """Meet the rollout engines for NCCL broadcasts; GPUs only.

        Args:
            actors: name and Ray handle of every rollout actor.
            workers_per_actor: tensor_parallel_size of an engine.
            address: of rank 0's node.
            port: free on that node.
            timeout_s: for one call to the actors.

        Returns:
            On rank 0 why each actor that did not connect in time didn't, by name.

        Raises:
            WeightUpdateError: when it failed by no actor's fault.
        """
        from weights.nccl import NcclWeightSender  # imports vLLM, which learners on CPUs do without

        if self._sender is not None:
            self._sender.close()
        self._sender = NcclWeightSender(
            self.weight_source(),
            actors=actors,
            workers_per_actor=workers_per_actor,
            rank=self._engine.address.rank,
            master_address=address,
            master_port=port,
            timeout_s=timeout_s,
        )
        return self._sender.failures

    def broadcast(self, version: int) -> BroadcastOutcome:
        """Send the weights to every connected engine.

        Args:
            version: policy version that these weights are.

        Returns:
            What became of it, on rank 0.

        Raises:
            WeightUpdateError: when it failed by no engine's fault.
        """
        if self._sender is None:
            raise RuntimeError("no engine is connected: call connect_broadcast first")
        return self._sender.send(version)

    def begin_checkpoint(self, folder: str | Path) -> None:
        """Copy weights and optimizer state, and start to write them beside training.

        Args:
            folder: on a file system that all ranks share.
        """
        self._engine.begin_save(Path(folder))
        self._saving = Path(folder)

    def finish_checkpoint(self) -> str | None:
        """Wait until this rank's files are written, on rank 0 with what else a model needs (learner/export.py makes one); no collective.

        Returns:
            None; or why they aren't.
        """
        problem = self._engine.finish_save()
        if problem is None and self._saving is not None and self._engine.address.rank == 0:
            try:
                keep_model_files(self._policy.model, self._model_path, self._saving)
            except OSError as error:
                return str(error)
        return problem

    def load_checkpoint(self, folder: str | Path) -> None:
        """Go on from a checkpoint that the same number of ranks wrote.

        Args:
            folder: as given to begin_checkpoint.
        """
        self._engine.load(Path(folder))

    def export_model(self, folder: str | Path) -> None:
        """Write the policy as a Hugging Face folder that AutoModelForImageTextToText and vLLM load.

        Args:
            folder: the weights are replaced when it's there.
        """
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.weight_source()}
        if self._engine.address.rank != 0:
            return
        write_model(self._policy.model, weights, self._model_path, Path(folder))

    def health(self) -> dict[str, int]:
        """Who this rank is; no collective."""
        return {"rank": self._engine.address.rank, "pid": os.getpid()}

    def close(self) -> None:
        """Leave the group; no collective."""
        self.publisher.close()
        self._engine.close()

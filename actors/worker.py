"""One prompt at a time through the engine: image, prompt tokens, n samples, grades, rewards, advantages, trajectories.

Owns how a prompt becomes a rollout group and how a question is answered greedily. Must not know Ray, replay or the learner.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from algorithms.advantages import group_advantages
from algorithms.types import FinishReason, ImageRef, Prompt, RolloutGroup, Segment, Trajectory, VersionSpan
from conf.schema import AlgorithmConfig, Extraction, ModelConfig, RewardConfig, RolloutConfig
from tasks.grading import GraderPool
from tasks.images import load_image
from tasks.prompts import PromptEncoder
from tasks.rewards import reward


class Completion(Protocol):
    """What the engine returns for one sample; arrays of length R."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    text: str


class Generator(Protocol):
    """The part of the engine that a worker uses (see actors.engine.RolloutEngine.generate)."""

    async def generate(
        self,
        prompt_token_ids: NDArray[np.int32],
        images: list[Image],
        image_hashes: list[str],
        *,
        n: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int | None,
        allowed_token_ids: list[int],
        request_id: str,
    ) -> list[Completion]:
        """Sample n completions of one prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """One visit of one prompt."""

    group_id: str  # "{prompt_id}@{visit}", unique in a run
    turn: int  # the group's place in the order in which steps consume groups
    prompt: Prompt
    seed: int  # of the samples: the same request gives the same samples from the same weights


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedAnswer:
    """One greedy answer to one question."""

    prompt_id: str
    category: str
    correct_strict: bool
    correct_lenient: bool
    grade_reason: str
    finish_reason: FinishReason
    num_response_tokens: int
    response: str
    answer: str  # gold


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """A prompt as the engine takes it."""

    token_ids: NDArray[np.int32]  # [P], one image pad per image
    images: list[Image]
    refs: tuple[ImageRef, ...]


class RolloutWorker:
    """Turns prompts into rollout groups with a generator, a grader pool and an encoder that it is given.

    Args:
        engine: samples completions.
        encoder: the chat template and its limits.
        grader: scores responses outside of this process.
        allowed_token_ids: ids that may be sampled.
        algorithm: group size and advantage.
        model: response limit.
        rollout: sampling settings.
        reward_config: which extraction counts and what an unfinished response earns.
    """

    def __init__(
        self,
        *,
        engine: Generator,
        encoder: PromptEncoder,
        grader: GraderPool,
        allowed_token_ids: list[int],
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        rollout: RolloutConfig,
        reward_config: RewardConfig,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._grader = grader
        self._allowed_token_ids = allowed_token_ids
        self._algorithm = algorithm
        self._model = model
        self._rollout = rollout
        self._reward = reward_config

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Read the prompt's images and apply the chat template.

        Args:
            prompt: with image paths that this node can read.

        Returns:
            Token ids with one image pad per image, and the images with their content hashes.

        Raises:
            BadPromptError: for an unreadable image, a wrong number of markers, or too many tokens.
        """
        loaded = [load_image(path) for path in prompt.image_paths]
        token_ids = self._encoder.encode(prompt, [image.size for image in loaded])
        return EncodedPrompt(token_ids=token_ids, images=[i.image for i in loaded], refs=tuple(i.ref for i in loaded))

    async def rollout(self, request: RolloutRequest) -> RolloutGroup:
        """Sample, grade and score the group of one prompt.

        Args:
            request: the prompt and the seed of its samples.

        Returns:
            samples_per_prompt trajectories with rewards and advantages.

        Raises:
            BadPromptError: when the prompt can't be used.
        """
        encoded = await asyncio.to_thread(self.encode, request.prompt)
        completions = await self._engine.generate(
            encoded.token_ids,
            encoded.images,
            [ref.sha256 for ref in encoded.refs],
            n=self._algorithm.samples_per_prompt,
            temperature=self._rollout.temperature,
            top_p=self._rollout.top_p,
            max_tokens=self._model.max_response_tokens,
            seed=request.seed,
            allowed_token_ids=self._allowed_token_ids,
            request_id=request.group_id,
        )
        golds = [request.prompt.answer] * len(completions)
        grades = await self._grader.grade_many([c.text for c in completions], golds, request.prompt.answer_type)
        strict = self._reward.extraction is Extraction.strict
        scores = [grade.strict_score if strict else grade.lenient_score for grade in grades]
        correct = [score == 1.0 for score in scores]
        rewards = [
            reward(correct=score == 1.0, finish_reason=c.finish_reason, invalid_reward=self._reward.invalid_reward, credit=score)
            for score, c in zip(scores, completions, strict=True)
        ]
        advantages = group_advantages(np.array(rewards), kind=self._algorithm.advantage.value)
        trajectories = tuple(
            Trajectory(
                trajectory_id=f"{request.group_id}/{index}",
                group_id=request.group_id,
                prompt_id=request.prompt.prompt_id,
                category=request.prompt.category,
                source=request.prompt.source,
                answer=request.prompt.answer,
                prompt_token_ids=encoded.token_ids,
                images=encoded.refs,
                response_token_ids=completion.token_ids,
                response_text=completion.text,
                behavior_logprobs=completion.logprobs,
                loss_mask=np.ones(len(completion.token_ids), dtype=np.bool_),
                version_spans=completion.version_spans,
                segments=(Segment(kind="y1", start=0, end=len(completion.token_ids)),),
                reward=rewards[index],
                advantage=float(advantages[index]),
                correct=correct[index],
                correct_strict=grades[index].strict,
                correct_lenient=grades[index].lenient,
                finish_reason=completion.finish_reason,
            )
            for index, completion in enumerate(completions)
        )
        return RolloutGroup(group_id=request.group_id, prompt_id=request.prompt.prompt_id, trajectories=trajectories)

    async def answer(self, prompt: Prompt, *, max_response_tokens: int) -> EvaluatedAnswer:
        """Answer one question greedily and grade it.

        Args:
            prompt: the question.
            max_response_tokens: limit of the answer.

        Returns:
            The graded answer.

        Raises:
            BadPromptError: when the question can't be used.
        """
        encoded = await asyncio.to_thread(self.encode, prompt)
        (completion,) = await self._engine.generate(
            encoded.token_ids,
            encoded.images,
            [ref.sha256 for ref in encoded.refs],
            n=1,
            temperature=0.0,
            top_p=1.0,
            max_tokens=max_response_tokens,
            seed=None,
            allowed_token_ids=self._allowed_token_ids,
            request_id=f"evaluate/{prompt.prompt_id}",
        )
        grade = await self._grader.grade(completion.text, prompt.answer, prompt.answer_type)
        return EvaluatedAnswer(
            prompt_id=prompt.prompt_id,
            category=prompt.category,
            correct_strict=grade.strict,
            correct_lenient=grade.lenient,
            grade_reason=grade.reason,
            finish_reason=completion.finish_reason,
            num_response_tokens=len(completion.token_ids),
            response=completion.text,
            answer=prompt.answer,
        )

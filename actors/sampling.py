"""Prompts and prefixes into the engine, completions out, graded: what rollouts and evaluations share.

Owns the form of a request to the engine and the reward of a response. Must not know groups, Ray, replay or the learner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from actors.responses import Completion, Response, Scored
from actors.rethinking import Continuation
from algorithms.types import ImageRef, Prompt
from conf.schema import Extraction, RewardConfig, RolloutConfig
from tasks.grading import GraderPool
from tasks.images import load_image
from tasks.prompts import PromptEncoder
from tasks.rewards import reward


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
class EncodedPrompt:
    """A prompt as the engine takes it."""

    token_ids: NDArray[np.int32]  # [P], one image pad per image
    images: list[Image]
    refs: tuple[ImageRef, ...]


class Sampler:
    """Encodes, samples and scores with an engine, an encoder and a grader pool that it is given.

    Args:
        engine: samples completions.
        encoder: the chat template and its limits.
        grader: scores responses outside of this process.
        allowed_token_ids: ids that may be sampled.
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
        rollout: RolloutConfig,
        reward_config: RewardConfig,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._grader = grader
        self._allowed_token_ids = allowed_token_ids
        self._rollout = rollout
        self._reward = reward_config

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Read the prompt's images and apply the chat template, in a thread.

        Args:
            prompt: with image paths that this node can read.

        Returns:
            Token ids with one image pad per image, and the images with their content hashes.

        Raises:
            BadPromptError: for an unreadable image, a wrong number of markers, or too many tokens.
        """
        return await asyncio.to_thread(self._encode, prompt)

    def _encode(self, prompt: Prompt) -> EncodedPrompt:
        loaded = [load_image(path) for path in prompt.image_paths]
        token_ids = self._encoder.encode(prompt, [image.size for image in loaded])
        return EncodedPrompt(token_ids=token_ids, images=[i.image for i in loaded], refs=tuple(i.ref for i in loaded))

    async def sample(
        self,
        encoded: EncodedPrompt,
        *,
        n: int,
        temperature: float,
        max_tokens: int,
        seed: int | None,
        request_id: str,
        prefix: NDArray[np.int32] | None = None,
    ) -> list[Completion]:
        """Sample responses to a prompt.

        Args:
            encoded: the prompt.
            n: responses.
            temperature: 0 is greedy.
            max_tokens: of one response, the prefix not counted.
            seed: None: not reproducible.
            request_id: unique among running requests.
            prefix: token ids that every response begins with; they are not part of the completions.

        Returns:
            n completions.
        """
        return await self._engine.generate(
            encoded.token_ids if prefix is None else np.concatenate([encoded.token_ids, prefix]),
            encoded.images,
            [ref.sha256 for ref in encoded.refs],
            n=n,
            temperature=temperature,
            top_p=self._rollout.top_p if temperature > 0 else 1.0,
            max_tokens=max_tokens,
            seed=seed,
            allowed_token_ids=self._allowed_token_ids,
            request_id=request_id,
        )

    async def sample_second(self, encoded: EncodedPrompt, continuation: Continuation, *, request_id: str) -> Completion:
        """Sample y2: the prompt with y1's own tokens and the trigger behind it, so that a prefix cache finds all but the trigger.

        Args:
            encoded: the prompt.
            continuation: y1 and the trigger.
            request_id: of y1.

        Returns:
            The completion.
        """
        temperature = self._rollout.temperature if continuation.temperature is None else continuation.temperature
        (completion,) = await self.sample(
            encoded,
            prefix=continuation.prefix,
            n=1,
            temperature=temperature,
            max_tokens=continuation.max_new_tokens,
            seed=continuation.seed if temperature > 0 else None,
            request_id=f"{request_id}/y2",
        )
        return completion

    async def score(self, responses: Sequence[Response], prompt: Prompt) -> list[Scored]:
        """Grade responses to one question and reward them.

        Args:
            responses: whole ones.
            prompt: with the gold answer and how it is compared.

        Returns:
            In order.
        """
        golds = [prompt.answer] * len(responses)
        grades = await self._grader.grade_many([response.text for response in responses], golds, prompt.answer_type)
        strict = self._reward.extraction is Extraction.strict
        return [
            Scored(
                response=response,
                grade=grade,
                correct=score == 1.0,
                reward=reward(
                    correct=score == 1.0,
                    finish_reason=response.finish_reason,
                    invalid_reward=self._reward.invalid_reward,
                    credit=score,
                ),
            )
            for response, grade in zip(responses, grades, strict=True)
            for score in (grade.strict_score if strict else grade.lenient_score,)
        ]

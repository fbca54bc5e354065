"""One prompt at a time through the engine: image, prompt tokens, n samples, forced rethinking, grades, rewards, advantages, trajectories.

Owns how a prompt becomes a rollout group and how a question is answered greedily. Must not know Ray, replay or the learner.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.answers import Answerer, EvaluatedAnswer
from actors.responses import Response, Scored
from actors.rethinking import Rethinker, evaluation_recipe_of, recipe_of
from actors.sampling import EncodedPrompt, Generator, Sampler
from algorithms.advantages import group_advantages
from algorithms.rethinking import RethinkingCounts, SecondResponse, accept, rethinks, transition
from algorithms.types import Prompt, RolloutGroup, Trajectory
from conf.schema import AlgorithmConfig, EvaluationMode, ModelConfig, Placement, RethinkingConfig, RewardConfig, RolloutConfig
from conf.variants import resolved
from tasks.grading import GraderPool
from tasks.prompts import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """One visit of one prompt."""

    group_id: str  # "{prompt_id}@{visit}", unique in a run
    turn: int  # the group's place in the order in which steps consume groups
    prompt: Prompt
    seed: int  # of the samples: the same request gives the same samples from the same weights


@dataclass(frozen=True, kw_only=True, slots=True)
class RolledOut:
    """A group, and what it took to make it."""

    group: RolloutGroup
    counts: RethinkingCounts


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
        rethinking: whether and how responses are made to go on.
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
        rethinking: RethinkingConfig | None = None,
    ) -> None:
        self._algorithm = algorithm
        self._model = model
        self._rollout = rollout
        self._rethinking = resolved(rethinking or RethinkingConfig())
        self._rethinker = Rethinker(encoder.tokenizer, allowed_token_ids, recipe_of(self._rethinking))
        self._sampler = Sampler(
            engine=engine,
            encoder=encoder,
            grader=grader,
            allowed_token_ids=allowed_token_ids,
            rollout=rollout,
            reward_config=reward_config,
        )
        evaluation = Rethinker(encoder.tokenizer, allowed_token_ids, evaluation_recipe_of(self._rethinking))
        self._answerer = Answerer(self._sampler, evaluation, words=self._rethinking.words)

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Read the prompt's images and apply the chat template; see Sampler.encode."""
        return await self._sampler.encode(prompt)

    async def rollout(self, request: RolloutRequest) -> RolledOut:
        """Sample, make go on, grade and score the group of one prompt.

        Args:
            request: the prompt and the seed of its samples.

        Returns:
            samples_per_prompt trajectories with rewards and advantages, more with rethinking.placement=append; and the counts.

        Raises:
            BadPromptError: when the prompt can't be used.
        """
        encoded = await self._sampler.encode(request.prompt)
        completions = await self._sampler.sample(
            encoded,
            n=self._algorithm.samples_per_prompt,
            temperature=self._rollout.temperature,
            max_tokens=self._model.max_response_tokens,
            seed=request.seed,
            request_id=request.group_id,
        )
        firsts = await self._sampler.score([Response.of(completion) for completion in completions], request.prompt)
        seconds, counts = await self._rethink(request, encoded, firsts)
        members: list[tuple[Scored, float | None]]  # a trajectory, and the reward that its y1 would have had
        if self._rethinking.placement is Placement.append:
            members = [(first, None) for first in firsts] + [(second, firsts[index].reward) for index, second in seconds.items()]
        else:
            members = [(seconds[i], first.reward) if i in seconds else (first, None) for i, first in enumerate(firsts)]
        advantages = group_advantages(np.array([member.reward for member, _ in members]), kind=self._algorithm.advantage.value)
        trajectories = tuple(
            _trajectory(request, encoded, member, index=index, advantage=float(advantages[index]), y1_reward=y1_reward)
            for index, (member, y1_reward) in enumerate(members)
        )
        group = RolloutGroup(group_id=request.group_id, prompt_id=request.prompt.prompt_id, trajectories=trajectories)
        return RolledOut(group=group, counts=counts)

    async def answer(self, prompt: Prompt, *, max_response_tokens: int, mode: EvaluationMode = EvaluationMode.none) -> EvaluatedAnswer:
        """Answer one question greedily; see Answerer.answer."""
        return await self._answerer.answer(prompt, max_response_tokens=max_response_tokens, mode=mode)

    async def _rethink(
        self, request: RolloutRequest, encoded: EncodedPrompt, firsts: Sequence[Scored]
    ) -> tuple[dict[int, Scored], RethinkingCounts]:
        """The continuations that are kept, by the index of their y1, and what became of all."""
        first_tokens = sum(len(first.response.token_ids) for first in firsts)
        spontaneous = sum(rethinks(first.response.text, self._rethinking.words) for first in firsts)
        counts = RethinkingCounts(rollouts=len(firsts), spontaneous=spontaneous, generated_tokens=first_tokens)
        if not self._rethinking.enabled:
            return {}, counts
        plan = self._rethinker.plan(firsts, seed=request.seed, max_response_tokens=self._model.max_response_tokens)
        completions = await asyncio.gather(
            *(self._sampler.sample_second(encoded, c, request_id=f"{request.group_id}/{c.index}") for c in plan.continuations)
        )
        joined = [self._rethinker.join(c, second) for c, second in zip(plan.continuations, completions, strict=True)]
        seconds = await self._sampler.score(joined, request.prompt)
        verdicts = accept(
            [
                SecondResponse(num_tokens=len(completion.token_ids), correct=second.correct, text=completion.text)
                for completion, second in zip(completions, seconds, strict=True)
            ],
            self._rethinker.recipe,
        )
        second_tokens = sum(len(completion.token_ids) for completion in completions)
        trigger_tokens = sum(len(continuation.trigger_token_ids) for continuation in plan.continuations)
        counts += RethinkingCounts(
            forced=len(seconds),
            kept=verdicts.count(None),
            generated_tokens=second_tokens,
            extra_tokens=trigger_tokens + second_tokens,
            prefix_tokens=sum(completion.num_prompt_tokens for completion in completions),
            cached_tokens=sum(completion.num_cached_tokens for completion in completions),
            transitions=Counter(
                transition(before=continuation.first.correct, after=second.correct)
                for continuation, second in zip(plan.continuations, seconds, strict=True)
            ),
            skipped=plan.skipped,
            dropped=Counter(verdict for verdict in verdicts if verdict is not None),
        )
        kept = zip(plan.continuations, seconds, verdicts, strict=True)
        return {continuation.index: second for continuation, second, verdict in kept if verdict is None}, counts


def _trajectory(
    request: RolloutRequest, encoded: EncodedPrompt, scored: Scored, *, index: int, advantage: float, y1_reward: float | None
) -> Trajectory:
    response, prompt = scored.response, request.prompt
    return Trajectory(
        trajectory_id=f"{request.group_id}/{index}",
        group_id=request.group_id,
        prompt_id=prompt.prompt_id,
        category=prompt.category,
        source=prompt.source,
        answer=prompt.answer,
        prompt_token_ids=encoded.token_ids,
        images=encoded.refs,
        response_token_ids=response.token_ids,
        response_text=response.text,
        behavior_logprobs=response.logprobs,
        loss_mask=response.loss_mask,
        version_spans=response.version_spans,
        segments=response.segments,
        reward=scored.reward,
        y1_reward=y1_reward,
        advantage=advantage,
        correct=scored.correct,
        correct_strict=scored.grade.strict,
        correct_lenient=scored.grade.lenient,
        finish_reason=response.finish_reason,
    )

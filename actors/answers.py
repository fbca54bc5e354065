"""Held-out questions: one greedy answer each, by itself or made to think again.

Owns the evaluation modes. Must not know Ray, replay or the learner.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from actors.responses import Completion, Response, Scored
from actors.rethinking import Continuation, Rethinker
from actors.sampling import Sampler
from algorithms.rethinking import rethinks
from algorithms.types import FinishReason, Prompt
from conf.schema import EvaluationMode


@dataclass(frozen=True, kw_only=True, slots=True)
class ForcedAnswer:
    """What a question's y1 came to by itself, and what y1 + trigger + y2 came to."""

    first_correct: bool  # by the extraction that rewards use, as final_correct
    first_correct_strict: bool
    first_correct_lenient: bool
    final_correct: bool
    final_correct_strict: bool
    final_correct_lenient: bool
    y1: str
    trigger: str
    y2: str
    extra_tokens: int  # of the trigger and y2


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedAnswer:
    """One greedy answer to one question, counted by the evaluation's mode."""

    prompt_id: str
    category: str
    correct_strict: bool
    correct_lenient: bool
    grade_reason: str
    finish_reason: FinishReason
    num_response_tokens: int
    response: str  # y1, or y1 + trigger + y2
    answer: str  # gold
    rethinks: bool = False  # y1 does, by itself
    forced: ForcedAnswer | None = None  # None: mode none, or passed over
    passed_over: str = ""  # why y1 could not go on


class Answerer:
    """Answers questions.

    Args:
        sampler: of the worker.
        rethinker: makes answers go on, with an evaluation's recipe.
        words: an answer with one of them rethinks by itself.
    """

    def __init__(self, sampler: Sampler, rethinker: Rethinker, *, words: list[str]) -> None:
        self._sampler = sampler
        self._rethinker = rethinker
        self._words = words

    async def answer(self, prompt: Prompt, *, max_response_tokens: int, mode: EvaluationMode = EvaluationMode.none) -> EvaluatedAnswer:
        """Answer one question greedily and grade it.

        Args:
            prompt: the question.
            max_response_tokens: limit of the answer, of y1 + trigger + y2 together where it goes on.
            mode: what counts as the answer. In the modes ``forced`` and ``bound`` every answer that ended by itself goes on.

        Returns:
            The graded answer.

        Raises:
            BadPromptError: when the question can't be used.
        """
        encoded = await self._sampler.encode(prompt)
        name = f"evaluate/{prompt.prompt_id}"
        (completion,) = await self._sampler.sample(
            encoded, n=1, temperature=0.0, max_tokens=max_response_tokens, seed=None, request_id=name
        )
        (first,) = await self._sampler.score([Response.of(completion)], prompt)
        final, forced, passed_over = first, None, ""
        if mode is not EvaluationMode.none:
            seed = zlib.crc32(prompt.prompt_id.encode())  # the same trigger for a question in every evaluation
            plan = self._rethinker.plan([first], seed=seed, max_response_tokens=max_response_tokens)
            passed_over = next(iter(plan.skipped), "")
            for continuation in plan.continuations:
                second = await self._sampler.sample_second(encoded, continuation, request_id=name)
                (final,) = await self._sampler.score([self._rethinker.join(continuation, second)], prompt)
                forced = _forced_answer(continuation, second, final)
        bound = mode is EvaluationMode.bound
        return EvaluatedAnswer(
            prompt_id=prompt.prompt_id,
            category=prompt.category,
            correct_strict=final.grade.strict or (bound and first.grade.strict),
            correct_lenient=final.grade.lenient or (bound and first.grade.lenient),
            grade_reason=final.grade.reason,
            finish_reason=final.response.finish_reason,
            num_response_tokens=len(final.response.token_ids),
            response=final.response.text,
            answer=prompt.answer,
            rethinks=rethinks(first.response.text, self._words),
            forced=forced,
            passed_over=passed_over,
        )


def _forced_answer(continuation: Continuation, second: Completion, final: Scored) -> ForcedAnswer:
    first = continuation.first
    return ForcedAnswer(
        first_correct=first.correct,
        first_correct_strict=first.grade.strict,
        first_correct_lenient=first.grade.lenient,
        final_correct=final.correct,
        final_correct_strict=final.grade.strict,
        final_correct_lenient=final.grade.lenient,
        y1=first.response.text,
        trigger=continuation.trigger_text,
        y2=second.text,
        extra_tokens=len(continuation.trigger_token_ids) + len(second.token_ids),
    )

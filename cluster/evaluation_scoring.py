"""Scores of stored answers: the same work right after answering and for `rethinker evaluate --rescore`.

Owns which answers count in which mode. Must not know models, Ray or how a report looks.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from cluster.evaluation_folder import AnswerRow, EvaluationFolder
from tasks.benchmarks.questions import AnswerForm, Score
from tasks.benchmarks.scoring import score_answer
from tasks.grading import GraderPool

AT_ONCE = 64  # answers in the graders' hands: enough to keep them busy, few enough to hold


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredAnswer:
    """What one answer counts in one mode."""

    question_id: str
    mode: str  # none, forced or bound
    token_limit: int
    num_tokens: int
    truncated: bool
    strict: float | None  # None: not scored
    lenient: float | None
    official: float | None  # with the benchmark's own guess; None: not asked for, or its rule guesses nothing
    method: str
    answer: str
    first_lenient: float | None = None  # of y1, where the response went on
    rethinks: bool = False  # y1 does, by itself
    extra_tokens: int = 0  # of num_tokens, those of the trigger and y2
    not_scored: str = ""  # why not: no rule can judge it, or there is no answer


async def score_benchmark(
    folder: EvaluationFolder,
    benchmark: str,
    grader: GraderPool,
    *,
    own_prompt: bool,
    guess: bool,
    seed: int,
    progress: Callable[[], None],
) -> list[ScoredAnswer]:
    """Score all stored answers of a benchmark and write them down.

    Args:
        folder: of the evaluation.
        benchmark: its name.
        grader: compares answers.
        own_prompt: answers were asked for in the benchmark's own form, not in a box.
        guess: also compute the official scores, which guess.
        seed: of a random guess.
        progress: called for each answer.

    Returns:
        In the order of the questions, then modes, then token limits.

    Raises:
        RunFolderError: when something in the folder can't be read.
    """
    questions, _ = folder.questions(benchmark)
    modes = folder.modes(benchmark)
    order = {question_id: number for number, question_id in enumerate(questions)}

    async def score(row: AnswerRow, mode: str) -> list[ScoredAnswer]:
        question = questions[row.question_id]
        form = question.form if own_prompt or question.rules else AnswerForm.boxed
        texts = [row.response] if row.first_response is None else [row.response, row.first_response]
        scores = [await score_answer(question, text, grader, form=form, guess=guess, seed=seed) for text in texts]
        progress()
        return _counted(row, mode, scores, with_none="none" not in modes)

    scored: list[ScoredAnswer] = []
    for mode in modes:
        rows = (row for row in folder.answers(benchmark, mode) if row.question_id in questions)
        while batch := list(islice(rows, AT_ONCE)):
            for found in await asyncio.gather(*(score(row, mode) for row in batch)):
                scored += found
    scored.sort(key=lambda found: (order[found.question_id], found.mode, found.token_limit))
    folder.write_scores(benchmark, (dataclasses.asdict(found) for found in scored))
    return scored


def _counted(row: AnswerRow, mode: str, scores: list[Score], *, with_none: bool) -> list[ScoredAnswer]:
    """An answer by itself; or what it comes to by itself, when made to go on, and at best."""
    final, first = scores[0], scores[-1]
    if mode == "none":
        return [_scored(row, mode, final)]
    best = first if _better(first, final) else final
    counted = [_scored(row, "none", first)] if with_none else []
    return [*counted, _scored(row, "forced", final, first=first), _scored(row, "bound", best, first=first)]


def _better(first: Score, final: Score) -> bool:
    return (first.lenient or 0.0, first.strict or 0.0) > (final.lenient or 0.0, final.strict or 0.0)


def _scored(row: AnswerRow, mode: str, score: Score, *, first: Score | None = None) -> ScoredAnswer:
    problem = f"not answered: {row.problem}" if row.problem else score.not_scored
    went_on = row.first_response is not None
    extra_tokens = row.extra_tokens if mode != "none" else 0
    return ScoredAnswer(
        question_id=row.question_id,
        mode=mode,
        token_limit=row.token_limit,
        num_tokens=row.num_tokens - row.extra_tokens + extra_tokens,
        truncated=row.finish_reason == "length" and not (went_on and mode == "none"),  # only a y1 that ended by itself goes on
        strict=None if problem else score.strict,
        lenient=None if problem else score.lenient,
        official=None if problem else score.official,
        method=score.method,
        answer=score.answer,
        first_lenient=first.lenient if first is not None and went_on else None,
        rethinks=row.rethinks,
        extra_tokens=extra_tokens,
        not_scored=problem,
    )

"""Greedy accuracy on held-out questions, and how it is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.answers import EvaluatedAnswer
from algorithms.types import Prompt
from tasks.dataset import PromptDataset

QUESTION_SEED = 0  # not the run's: runs with different seeds answer the same questions


def held_out_questions(dataset: PromptDataset, num_questions: int) -> list[Prompt]:
    """Choose the questions of an evaluation, the same ones each time.

    Args:
        dataset: held-out data.
        num_questions: how many; 0: all.

    Returns:
        The questions, in the data set's order.
    """
    if num_questions == 0 or num_questions >= len(dataset):
        return [dataset[index] for index in range(len(dataset))]
    chosen = np.random.default_rng(QUESTION_SEED).choice(len(dataset), size=num_questions, replace=False)
    return [dataset[int(index)] for index in np.sort(chosen)]


def report(answers: Sequence[EvaluatedAnswer], bad: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Accuracies over all questions and by category.

    Args:
        answers: graded.
        bad: (prompt_id, reason) of questions that could not be used; counted, never scored.

    Returns:
        JSON-able: questions, bad, accuracy_strict, accuracy_lenient, truncated_fraction, response_length_mean, categories.
    """
    categories = sorted({answer.category for answer in answers})
    return {
        **_accuracies(answers),
        "bad_questions": len(bad),
        "categories": {name: _accuracies([a for a in answers if a.category == name]) for name in categories},
    }


def _accuracies(answers: Sequence[EvaluatedAnswer]) -> dict[str, float]:
    number = max(len(answers), 1)
    return {
        "questions": len(answers),
        "accuracy_strict": sum(a.correct_strict for a in answers) / number,
        "accuracy_lenient": sum(a.correct_lenient for a in answers) / number,
        "truncated_fraction": sum(a.finish_reason == "length" for a in answers) / number,
        "response_length_mean": sum(a.num_response_tokens for a in answers) / number,
    }

"""A task of one's own in one file: text puzzles of reasoning-gym, generated and scored by it.

    pip install reasoning-gym
    rethinker data check basic_arithmetic:200:1 --config examples/reasoning_gym.yaml
    rethinker train examples/reasoning_gym.yaml model.path=models/my-model

The configuration names the two functions: data.reader makes rows of data.path, data.scorer scores an answer. A row is a mapping with
"question" and "answer", and may have "id", "category", "source", "image" and whatever else the scorer wants to see.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import reasoning_gym


@functools.cache
def _puzzles(name: str, size: int, seed: int) -> Any:
    return reasoning_gym.create_dataset(name, size=size, seed=seed)


def rows(path: str) -> Iterator[dict[str, Any]]:
    """Generate puzzles; the same path gives the same ones, which is what makes a run resumable.

    Args:
        path: of data.path, "name:size:seed"; several joined by "+", and each becomes a category.

    Yields:
        Rows with the puzzle's metadata beside question and answer.
    """
    for part in path.split("+"):
        name, size, seed = part.split(":")
        for number, puzzle in enumerate(_puzzles(name, int(size), int(seed))):
            yield {"id": f"{name}-{seed}-{number}", "category": name, "source": "reasoning-gym", **puzzle}


def score(answer: str, gold: str, row: dict[str, Any]) -> float:
    """Have the puzzle's own verifier score an answer; called in a grader process.

    Args:
        answer: of the response, out of its box.
        gold: the row's answer.
        row: as rows() made it, without pictures.

    Returns:
        From 0 to 1; less than 1 is partial credit.
    """
    return float(_puzzles(row["category"], 1, 0).score_answer(answer, entry=row))

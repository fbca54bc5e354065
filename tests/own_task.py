"""A user's task for tests: sums, with half a point for any number.

Its scorers take their time without a processor: a run that goes on while it is looked at leaves the machine to the tests beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

PAUSE_S = 0.05


def rows(path: str) -> Iterator[dict[str, object]]:
    """As many sums as the path says, in two categories."""
    for number in range(int(path)):
        a, b = number % 9, number % 7
        yield {
            "id": f"sum-{number}",
            "question": f"What is {a}+{b}?",
            "answer": f"{a + b}",
            "category": "even" if number % 2 == 0 else "odd",
            "a": a,
            "b": b,
        }


def score(answer: str, gold: str, row: dict[str, int]) -> float:
    """Right, any number, or nothing."""
    time.sleep(PAUSE_S)
    text = answer.strip().lstrip("-")
    return 1.0 if answer.strip() == str(row["a"] + row["b"]) else 0.5 if text.isdigit() else 0.0


def unhurried(answer: str, gold: str, row: dict[str, object]) -> float:
    """Score the quickstart's answers, which are a word or a number."""
    time.sleep(PAUSE_S)
    return float(answer.strip() == gold.removeprefix("\\boxed{").removesuffix("}"))

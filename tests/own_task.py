"""A user's task for tests: sums, with half a point for any number."""

from __future__ import annotations

from collections.abc import Iterator


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
    text = answer.strip().lstrip("-")
    return 1.0 if answer.strip() == str(row["a"] + row["b"]) else 0.5 if text.isdigit() else 0.0

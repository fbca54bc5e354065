"""What a graded response is worth.

Must not know how it was graded.
"""

from __future__ import annotations

from algorithms.types import FinishReason


def reward(*, correct: bool, finish_reason: FinishReason, invalid_reward: float, credit: float = 0.0) -> float:
    """Score a response.

    Args:
        correct: by the extraction mode that the run uses.
        finish_reason: "length" when the response was cut off before its end of sequence.
        invalid_reward: of a response that was cut off, whatever it says.
        credit: in [0, 1), what a user's scorer gives to an answer that isn't right.

    Returns:
        1 for a correct response, its credit (0) for a wrong one.
    """
    if finish_reason == "length":
        return invalid_reward
    return 1.0 if correct else credit

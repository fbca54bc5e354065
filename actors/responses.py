"""A response on its way to a trajectory, and what its grade made of it.

Owns the two nouns between the engine's completions and algorithms.types.Trajectory. Must not know Ray, replay or the learner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from algorithms.types import FinishReason, Segment, VersionSpan
from tasks.grading import Grade


class Completion(Protocol):
    """What the engine returns for one sample; arrays of length R."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    text: str
    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A response of one or three segments; fields as in algorithms.types.Trajectory, arrays of length R."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]  # nats; 0 where the model did not sample
    loss_mask: NDArray[np.bool_]  # False where the model did not sample
    version_spans: tuple[VersionSpan, ...]
    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    text: str

    @classmethod
    def of(cls, completion: Completion) -> Response:
        """A response that the model sampled whole.

        Args:
            completion: of the engine.

        Returns:
            One segment, y1.
        """
        length = len(completion.token_ids)
        return cls(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            loss_mask=np.ones(length, dtype=np.bool_),
            version_spans=completion.version_spans,
            segments=(Segment(kind="y1", start=0, end=length),),
            finish_reason=completion.finish_reason,
            text=completion.text,
        )

    def segment(self, kind: str) -> Segment | None:
        """The segment of a kind.

        Args:
            kind: "y1", "trigger" or "y2".

        Returns:
            None when there is none.
        """
        return next((segment for segment in self.segments if segment.kind == kind), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A response with its grade and reward."""

    response: Response
    grade: Grade
    correct: bool  # by the extraction that the reward uses
    reward: float

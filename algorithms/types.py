"""The nouns that travel round the loop: prompt, trajectory, rollout group, sampled trajectory.

Owns the contract between the roles. Must not know Ray, torch, the engines or configuration objects.
Every array is one-dimensional NumPy; a trajectory's per-token arrays all have length R, its number of response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SegmentKind = Literal["y1", "trigger", "y2"]
FinishReason = Literal["stop", "length"]
IMAGE_MARKER = "<image>"  # in a question: here belongs a picture
AnswerKind = Literal["free", "choice", "number", "scored"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """An image by reference, so that pixels never travel with a trajectory.

    Example: ``ImageRef(path="/data/images/q1-0.png", sha256="9f86d0...")``.
    """

    path: str  # readable on every node that rolls out or learns
    sha256: str  # of the file's bytes; the key of every image cache and the proof that both ends saw the same picture


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerType:
    """How a response's answer is compared with the gold answer; the default suits mathematics, words and bare choice letters.

    Example: ``AnswerType(kind="choice", options=("red", "blue"))`` takes "B", "(b)", "B. blue" and "blue" for the gold answer "B";
    ``AnswerType(kind="number", unit="cm", relative_tolerance=0.01)`` takes "0.05 m" and "5.02" for the gold answer "5".
    """

    kind: AnswerKind = "free"
    options: tuple[str, ...] = ()  # choice: the texts of A, B, ...; "" for an option without one (a picture); none at all: letters only
    unit: str = ""  # number: of the gold answer; empty: the one that the gold answer itself ends with, if any
    relative_tolerance: float = 0.0  # number: share of the gold answer
    absolute_tolerance: float = 0.0  # number: in the gold answer's unit; the larger of the two tolerances counts
    decimals: int | None = None  # number: both are rounded to so many places first; None: not rounded
    scorer: str = ""  # scored: "module.function" of the task's owner, called in a grader process (docs/graders.md)
    data: str = ""  # scored: JSON that the function gets as it is


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One question with its gold answer.

    Example: ``Prompt(prompt_id="q17", question="<image>Is there a circle?", image_paths=("/data/images/17-0.png",), answer="yes", ...)``.
    """

    prompt_id: str  # unique in its data set
    question: str  # one "<image>" marker per image, in order; markers may be missing, then images come first
    image_paths: tuple[str, ...]  # readable on every node that rolls out or learns; empty: text only
    answer: str  # gold, without \boxed{}
    category: str
    source: str
    answer_type: AnswerType = AnswerType()  # how answers are compared with it


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionSpan:
    """The policy version that produced the response tokens [start, end)."""

    start: int
    end: int
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A named part [start, end) of the response tokens; triggers are text that the model did not sample."""

    kind: SegmentKind
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One sampled response with everything that training on it needs.

    Example: a two-token response sampled under version 3 has ``response_token_ids=[51, 2]``,
    ``behavior_logprobs=[-0.4, -0.1]``, ``version_spans=(VersionSpan(start=0, end=2, version=3),)``.
    """

    trajectory_id: str  # "{group_id}/{index}", unique in a run
    group_id: str  # "{prompt_id}@{visit}", unique in a run
    prompt_id: str
    category: str
    source: str
    answer: str  # gold
    prompt_token_ids: NDArray[np.int32]  # [P], one image pad per image (as given to the engine, not expanded)
    images: tuple[ImageRef, ...]  # in the order of the image pads
    response_token_ids: NDArray[np.int32]  # [R], the end-of-sequence token included when it was sampled
    response_text: str
    behavior_logprobs: NDArray[np.float32]  # [R] nats, under the sampling distribution (temperature and mask applied)
    loss_mask: NDArray[np.bool_]  # [R], False where the model did not sample the token (triggers)
    version_spans: tuple[VersionSpan, ...]  # cover [0, R) without gaps
    segments: tuple[Segment, ...]  # cover [0, R) without gaps
    reward: float
    y1_reward: float | None = None  # what y1 alone would have earned; None: nothing was forced
    advantage: float
    correct: bool  # by the extraction mode that the reward uses
    correct_strict: bool
    correct_lenient: bool
    finish_reason: FinishReason

    @property
    def policy_version(self) -> int:
        """The oldest version that produced one of its tokens: the one that staleness counts from."""
        return min(span.version for span in self.version_spans)

    @property
    def token_versions(self) -> NDArray[np.int64]:
        """[R] the policy version that produced each response token."""
        spans = self.version_spans
        return np.repeat(np.array([s.version for s in spans], np.int64), np.array([s.end - s.start for s in spans], np.int64))

    @property
    def num_response_tokens(self) -> int:
        """R, the length of the per-token arrays."""
        return len(self.response_token_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """The G trajectories of one prompt, sampled under one request."""

    group_id: str
    prompt_id: str
    trajectories: tuple[Trajectory, ...]

    @property
    def is_effective(self) -> bool:
        """True when the group is not uniform in correctness, the only groups with a learning signal.

        Reward shaping makes uniform groups slightly non-zero in advantage, so correctness decides, not the advantage.
        """
        return len({trajectory.correct for trajectory in self.trajectories}) > 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledTrajectory:
    """A trajectory as replay hands it out, with what the importance correction needs.

    Example: drawn with probability 0.02 from a table of 100, the correction is ``(1 / (100 * 0.02)) ** beta``.
    """

    trajectory: Trajectory
    key: int  # replay's own key of the item, for update_priorities
    probability: float  # of this draw, in (0, 1]
    table_size: int  # items it was drawn among
    age: int  # policy versions between the sample's version and the learner's, at the draw
    times_sampled: int  # how often the item has been drawn, this draw included
    fresh: bool  # drawn from the groups that arrived since the last step, not from older ones
    update: int  # which of the step's optimizer updates it belongs to, from 0

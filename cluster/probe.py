"""The same prompt scored by the learner and by the engines after every sync: whether the weights that arrived are those that are trained.

Owns the probe and what is made of it. The checksum shows that the bytes are right; this shows that the model made of them is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from algorithms.schema import to_record_batch
from algorithms.types import Prompt, Trajectory
from cluster.fleet import RolloutFleet
from cluster.replica import Replica, ReplicaLostError
from conf.schema import Config, Dtype
from tasks.worked import WorkedAnswer

logger = logging.getLogger(__name__)

SEARCHED = 64  # prompts among which one with a picture is looked for, so that the vision tower is probed too
LIMITS = {Dtype.float32: 1e-3, Dtype.bfloat16: 0.5}
"""Nats. In float32 engine and learner differ by rounding (1e-5 measured); in bfloat16 single tokens differ by tenths without any fault."""


class Scorer(Protocol):
    """What the learner group is to this module."""

    async def score(
        self, trajectories: pa.Table, *, temperature: float | None = None, mask_banned: bool = True
    ) -> list[NDArray[np.float32]]:
        """Log-probs of given responses."""


class Encoder(Protocol):
    """What the learner group is to whoever chooses a probe."""

    async def first_usable(self, answers: Sequence[WorkedAnswer]) -> tuple[int, Trajectory]:
        """The first worked answer that can be used: its place, and the answer as token ids."""


class EngineProbe:
    """One short prompt with its answer.

    Args:
        prompt: with its images.
        trajectory: the same as token ids, with a response.
        limit: largest difference of a token's log-probs that is no reason to warn, nats.
    """

    def __init__(self, prompt: Prompt, trajectory: Trajectory, *, limit: float) -> None:
        self._prompt = prompt
        self._response = trajectory.response_token_ids.tolist()
        self._table = pa.Table.from_batches([to_record_batch([trajectory])])
        self._limit = limit

    async def expected(self, learner: Scorer) -> NDArray[np.float32]:
        """The learner's log-probs; a forward pass over one short sequence.

        Args:
            learner: with the weights that were published.

        Returns:
            [R] nats, over the whole vocabulary at temperature 1, which is what engines score.
        """
        (logprobs,) = await learner.score(self._table, temperature=1.0, mask_banned=False)
        return logprobs

    async def mismatch(self, fleet: RolloutFleet, replica: Replica, expected: NDArray[np.float32]) -> float:
        """Compare one engine with the learner, and warn when they differ by more than the limit.

        Args:
            fleet: that the replica belongs to.
            replica: with the same weights.
            expected: of the learner.

        Returns:
            Largest difference of a token's log-probs, nats; not a number when the replica was lost.
        """
        try:
            found = np.array(await fleet.score(replica, self._prompt, self._response))
        except ReplicaLostError:
            return float("nan")
        difference = float(np.abs(found - expected).max())
        if not difference <= self._limit:
            logger.warning(
                "%s scores the probe %.3g nats away from the learner on the same weights, more than %.3g: what it samples has other"
                " log-probs than the learner computes; see docs/weights.md",
                replica.name,
                difference,
                self._limit,
            )
        return difference


async def make_probe(config: Config, learner: Encoder, prompts: Sequence[Prompt]) -> EngineProbe:
    """Choose the probe of a run: the first usable prompt with a picture, else the first usable one; its response is the answer in a box.

    Args:
        config: of the run.
        learner: which has the tokenizer; the driver needn't load one, nor torch with it.
        prompts: the training prompts.

    Returns:
        The same for every process of a run.

    Raises:
        LearnerGroupError: when none of the first prompts can be used, or the learner doesn't answer.
    """
    candidates = sorted((prompts[index] for index in range(min(SEARCHED, len(prompts)))), key=lambda prompt: not prompt.image_paths)
    answers = [WorkedAnswer(prompt=prompt, text=f"\\boxed{{{prompt.answer}}}") for prompt in candidates]
    place, trajectory = await learner.first_usable(answers)
    limit = config.weights.mismatch_limit
    return EngineProbe(candidates[place], trajectory, limit=LIMITS[config.model.dtype] if limit is None else limit)

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
from tasks.errors import BadPromptError
from tasks.prompts import PromptEncoder, load_tokenizer
from tasks.worked import WorkedAnswer, supervised_trajectories

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


def make_probe(config: Config, model_path: str, prompts: Sequence[Prompt]) -> EngineProbe:
    """Choose the probe of a run: the first usable prompt with a picture, else the first usable one; its response is the answer in a box.

    Args:
        config: of the run.
        model_path: for the tokenizer.
        prompts: the training prompts.

    Returns:
        The same for every process of a run.

    Raises:
        BadPromptError: when none of the first prompts can be used.
    """
    tokenizer = load_tokenizer(model_path)
    encoder = PromptEncoder.of_run(tokenizer, config.model, config.data)
    candidates = [prompts[index] for index in range(min(SEARCHED, len(prompts)))]
    refusal: BadPromptError | None = None
    for prompt in sorted(candidates, key=lambda prompt: not prompt.image_paths):
        answer = WorkedAnswer(prompt=prompt, text=f"\\boxed{{{prompt.answer}}}")
        try:
            (trajectory,) = supervised_trajectories([answer], encoder=encoder, tokenizer=tokenizer)
        except BadPromptError as error:
            refusal = error
            continue
        if len(trajectory.response_token_ids) <= config.model.max_response_tokens:
            limit = config.weights.mismatch_limit
            return EngineProbe(prompt, trajectory, limit=LIMITS[config.model.dtype] if limit is None else limit)
    raise BadPromptError(f"none of the first {len(candidates)} prompts can be scored as a probe: {refusal}")

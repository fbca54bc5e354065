"""Worked answers of a data set, as supervised trajectories for a cold start.

Owns reading the extra columns ``worked`` and ``rethink``. Must not know how they are trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from algorithms.types import Prompt, Segment, Trajectory, VersionSpan
from conf.schema import DataConfig
from tasks.dataset import PromptDataset
from tasks.errors import BadPromptError, DataError
from tasks.images import load_image
from tasks.prompts import PromptEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkedAnswer:
    """A question with an answer to imitate."""

    prompt: Prompt
    text: str


def worked_answers(path: str, config: DataConfig, *, examples: int, rethinking_fraction: float, seed: int) -> list[WorkedAnswer]:
    """Choose questions of a data set with their worked answers.

    Args:
        path: folder in ViRL39K's layout whose Parquet file has the columns ``worked`` and ``rethink``.
        config: which rows are selected.
        examples: how many; all when there are fewer.
        rethinking_fraction: share of them whose answer has a rethinking turn.
        seed: of the choice.

    Returns:
        The answers in a random order.

    Raises:
        DataError: when the folder isn't in that layout or the columns are missing.
    """
    dataset = PromptDataset(path, config)
    (parquet,) = Path(path).glob("*.parquet")
    missing = {"qid", "worked", "rethink"} - set(pq.read_schema(parquet).names)
    if missing:
        raise DataError(f"{parquet} has no column {sorted(missing)}; a cold start (coldstart.steps) needs worked answers")
    table = pq.read_table(parquet, columns=["qid", "worked", "rethink"])
    texts = {row["qid"]: row for row in table.to_pylist()}
    random = np.random.default_rng(seed)
    chosen = [dataset[int(index)] for index in random.permutation(len(dataset))[:examples]]
    rethinks = random.random(len(chosen)) < rethinking_fraction
    return [
        WorkedAnswer(prompt=prompt, text=texts[prompt.prompt_id]["rethink" if rethink else "worked"])
        for prompt, rethink in zip(chosen, rethinks, strict=True)
    ]


def supervised_trajectories(
    answers: Sequence[WorkedAnswer], *, encoder: PromptEncoder, tokenizer: PreTrainedTokenizerBase
) -> list[Trajectory]:
    """Write worked answers as trajectories that end with the end-of-sequence token.

    Args:
        answers: to imitate.
        encoder: of the prompts.
        tokenizer: of the answers.

    Returns:
        One trajectory each, with advantage 1 and behaviour log-probs of 0.
    """
    trajectories = []
    for number, answer in enumerate(answers):
        images = [load_image(path) for path in answer.prompt.image_paths]
        response = [*tokenizer.encode(answer.text, add_special_tokens=False), tokenizer.eos_token_id]
        length = len(response)
        trajectories.append(
            Trajectory(
                trajectory_id=f"{answer.prompt.prompt_id}@worked-{number}/0",
                group_id=f"{answer.prompt.prompt_id}@worked-{number}",
                prompt_id=answer.prompt.prompt_id,
                category=answer.prompt.category,
                source=answer.prompt.source,
                answer=answer.prompt.answer,
                prompt_token_ids=encoder.encode(answer.prompt, [image.size for image in images]),
                images=tuple(image.ref for image in images),
                response_token_ids=np.array(response, dtype=np.int32),
                response_text=answer.text,
                behavior_logprobs=np.zeros(length, dtype=np.float32),
                loss_mask=np.ones(length, dtype=np.bool_),
                version_spans=(VersionSpan(start=0, end=length, version=0),),
                segments=(Segment(kind="y1", start=0, end=length),),
                reward=1.0,
                advantage=1.0,
                correct=True,
                correct_strict=True,
                correct_lenient=True,
                finish_reason="stop",
            )
        )
    return trajectories


def first_usable(
    answers: Sequence[WorkedAnswer], *, encoder: PromptEncoder, tokenizer: PreTrainedTokenizerBase, max_response_tokens: int
) -> tuple[int, Trajectory]:
    """Find the first worked answer whose prompt can be used and that is short enough.

    Args:
        answers: at least one.
        encoder: of the prompts.
        tokenizer: of the answers.
        max_response_tokens: that it may have.

    Returns:
        Its place among the answers, and the answer as a trajectory.

    Raises:
        BadPromptError: when there is none, with the reason of the last one.
    """
    refusal: BadPromptError | None = None
    for place, answer in enumerate(answers):
        try:
            (trajectory,) = supervised_trajectories([answer], encoder=encoder, tokenizer=tokenizer)
        except BadPromptError as error:
            refusal = error
            continue
        if len(trajectory.response_token_ids) <= max_response_tokens:
            return place, trajectory
    raise BadPromptError(f"none of {len(answers)} worked answers can be used: {refusal or f'all have over {max_response_tokens} tokens'}")


def direct_trajectory(prompt: Prompt, *, encoder: PromptEncoder, tokenizer: PreTrainedTokenizerBase) -> Trajectory:
    """The answer at once, as a habit: the box and nothing else, of which only the opening is learned.

    Its content is no guess that a small model could make without work, and learning it would spoil what the model can see.

    Args:
        prompt: the question.
        encoder: of the prompt.
        tokenizer: of the answer.

    Returns:
        A trajectory whose loss mask ends with the opening brace.
    """
    answer = WorkedAnswer(prompt=prompt, text=f"\\boxed{{{prompt.answer}}}")
    (trajectory,) = supervised_trajectories([answer], encoder=encoder, tokenizer=tokenizer)
    opening = tokenizer.encode("\\boxed{", add_special_tokens=False)
    habit = np.arange(len(trajectory.loss_mask)) < len(opening)
    return dataclasses.replace(trajectory, loss_mask=habit)

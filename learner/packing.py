"""How samples share rows: a prompt is computed once for many of its responses.

Owns the cut of samples into rows and what a row costs. Must not know tensors, images or the model.

The G trajectories of a group repeat one prompt, and draws with replacement repeat whole trajectories. A row is therefore one prompt
followed by its *distinct* responses, each of which sees the prompt and itself only (a tree mask) and continues the
prompt's positions. Every sample's log-probs are exactly those of prompt + response alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from algorithms.types import Trajectory

SHARED_ROW_TOKENS = 4096
"""Responses share a prompt up to rows of this length: the tree mask is dense, so attention's work and the mask's memory grow with the
square of the length, while what sharing saves grows with the length only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt with some of its distinct responses.

    Example: samples 3 and 7 drew the same trajectory of a 10-token prompt, sample 4 another one, responses of 5 and 3
    tokens: ``Row(responses=((3, 7), (4,)), num_tokens=16)``.
    """

    responses: tuple[tuple[int, ...], ...]  # one entry a distinct response: the samples that drew it
    num_tokens: int  # prompt (image tokens included) + each response without its last token, which predicts nothing


def pack_rows(trajectories: Sequence[Trajectory], prompt_lengths: Sequence[int], *, max_row_tokens: int) -> list[Row]:
    """Put the samples of one prompt into as few rows as the bound allows.

    Args:
        trajectories: [S] one a sample.
        prompt_lengths: [S] tokens of each sample's prompt, image tokens included.
        max_row_tokens: a row that shares its prompt is not made longer than this; a longer single response has a row of its own.

    Returns:
        Rows that hold every sample exactly once.

    Raises:
        ValueError: when a trajectory has no response tokens.
    """
    prompts: dict[tuple, dict[bytes, list[int]]] = {}
    for sample, trajectory in enumerate(trajectories):
        if trajectory.num_response_tokens == 0:
            raise ValueError(f"trajectory {trajectory.trajectory_id} has no response tokens")
        prompt = (trajectory.prompt_token_ids.tobytes(), tuple(image.sha256 for image in trajectory.images))
        responses = prompts.setdefault(prompt, {})
        responses.setdefault(trajectory.response_token_ids.tobytes(), []).append(sample)
    rows: list[Row] = []
    for responses in prompts.values():
        # Shortest first: like lengths end up in one row, and a row's bound is reached by the long ones only.
        by_length = sorted(responses.values(), key=lambda samples: trajectories[samples[0]].num_response_tokens)
        prompt_tokens = prompt_lengths[by_length[0][0]]
        members: list[tuple[int, ...]] = []
        num_tokens = prompt_tokens
        for samples in by_length:
            extra = trajectories[samples[0]].num_response_tokens - 1
            if members and num_tokens + extra > max_row_tokens:
                rows.append(Row(responses=tuple(members), num_tokens=num_tokens))
                members, num_tokens = [], prompt_tokens
            members.append(tuple(samples))
            num_tokens += extra
        rows.append(Row(responses=tuple(members), num_tokens=num_tokens))
    return rows

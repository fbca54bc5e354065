"""Arithmetic over the draws of a step: which rank gets which, and the figures of a batch.

Owns the dealing of rows to ranks. Must not know rows, selectors, storage or Ray.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from algorithms.batching import balanced_shards


def deal(tokens: NDArray[np.int64], prompts: Sequence[str], updates: NDArray[np.int64], *, num_shards: int) -> list[NDArray[np.int64]]:
    """Deal the rows of each update to the ranks, with near-equal token sums and the rows of a prompt together.

    Args:
        tokens: [n] of each draw.
        prompts: [n] of each draw; not looked at when there is one rank.
        updates: [n] which update a draw belongs to, rising.
        num_shards: D >= 1, ranks of the learner.

    Returns:
        D arrays of indices into the draws, a rank's update by update; an array may be empty.
    """
    if num_shards == 1:
        return [np.arange(len(tokens))]
    ranks: list[list[int]] = [[] for _ in range(num_shards)]
    lengths = tokens.tolist()
    for update in np.unique(updates):
        members = np.flatnonzero(updates == update).tolist()
        shards = balanced_shards([lengths[i] for i in members], [prompts[i] for i in members], num_shards=num_shards)
        for rank, shard in zip(ranks, shards, strict=True):
            rank += [members[i] for i in shard]
    return [np.array(rank, dtype=np.int64) for rank in ranks]


def draw_figures(draws: dict[str, NDArray], *, num_updates: int) -> dict[str, float]:
    """Figures over the draws of a step.

    Args:
        draws: [n] values for every one of SAMPLE_FIELDS.
        num_updates: of the step.

    Returns:
        Counts and means by metric name; ages in policy versions.
    """
    num_drawn = len(draws["key"])
    return {
        "replay/empty": float(num_drawn == 0),
        "replay/drawn": num_drawn,
        "replay/drawn_distinct": len(np.unique(draws["key"])),
        "replay/fresh_fraction": float(draws["fresh"].mean()) if num_drawn else 0.0,
        "replay/age_mean": float(draws["age"].mean()) if num_drawn else 0.0,
        "replay/age_max": int(draws["age"].max()) if num_drawn else 0,
        "replay/rows_per_update": num_drawn // num_updates,
    }


def occurrences(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the draws of each row.

    Args:
        values: [n] in the order of the draw.

    Returns:
        [n] the how-manieth of its value each entry is, from 1.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = np.arange(1, len(values) + 1) - np.searchsorted(ordered, ordered)
    return counts

"""Drawn rows as the tables that the learner's ranks get.

Owns the numbering of a step's updates and the dealing of rows to ranks. Must not know selectors, storage or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from algorithms.batching import balanced_shards
from algorithms.schema import SAMPLE_FIELDS, SAMPLE_SCHEMA


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The rows of one training step."""

    shards: list[pa.Table]  # one per learner rank, of SAMPLE_SCHEMA; all empty when nothing could be drawn
    stats: dict[str, float]  # by metric name; "replay/empty" is 1 when there's nothing to train on
    consumed: list[pa.RecordBatch]  # all trajectories of the groups that the step consumed, turn by turn


def rank_tables(rows: pa.RecordBatch, indices: NDArray[np.int64], draws: dict[str, NDArray], *, num_shards: int) -> list[pa.Table]:
    """Deal the rows of each update to the ranks, with near-equal token sums and the rows of a prompt together.

    Args:
        rows: the drawn rows, each once.
        indices: [n] into rows, in the order of the draw; a row drawn twice is there twice.
        draws: [n] values for every one of SAMPLE_FIELDS; ``update`` says which update a draw belongs to.
        num_shards: D >= 1, ranks of the learner.

    Returns:
        D tables of SAMPLE_SCHEMA, a rank's rows update by update; a table may be empty.
    """
    tokens = pc.add(pc.list_value_length(rows.column("prompt_token_ids")), pc.list_value_length(rows.column("response_token_ids")))
    lengths = tokens.to_numpy(zero_copy_only=False)[indices].tolist()
    names = rows.column("prompt_id").to_pylist()
    prompts = [names[i] for i in indices.tolist()]
    ranks: list[list[int]] = [[] for _ in range(num_shards)]
    for update in np.unique(draws["update"]):
        members = np.flatnonzero(draws["update"] == update).tolist()
        shards = balanced_shards([lengths[i] for i in members], [prompts[i] for i in members], num_shards=num_shards)
        for rank, shard in zip(ranks, shards, strict=True):
            rank += [members[i] for i in shard]
    return [_rank_table(rows, indices, draws, np.array(rank, dtype=np.int64)) for rank in ranks]


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


def _rank_table(rows: pa.RecordBatch, indices: NDArray[np.int64], draws: dict[str, NDArray], order: NDArray[np.int64]) -> pa.Table:
    payload = rows.take(pa.array(indices[order]))
    drawn = [pa.array(draws[field.name][order], type=field.type) for field in SAMPLE_FIELDS]
    return pa.Table.from_arrays([*payload.columns, *drawn], schema=SAMPLE_SCHEMA)

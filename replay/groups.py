"""Rollout groups as replay counts them: what an arriving batch holds, and the figures of the groups that a step consumed.

Owns the reading of record batches at the door and the sums that outlive the rows: groups without a signal are counted though their
rows may never be stored. Must not know storage, draws or Ray.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from algorithms.schema import TRAJECTORY_SCHEMA, check_schema


class GroupSummary(NamedTuple):
    """Sums over the trajectories of one rollout group; a tuple, because each insert makes dozens and thousands are kept."""

    group_id: str
    prompt_id: str
    trajectories: int
    effective: bool  # not uniform in correctness
    reward_sum: float
    num_correct: int  # by the extraction that the reward uses
    num_correct_strict: int
    num_correct_lenient: int
    num_truncated: int  # stopped by the length limit
    response_tokens: int
    generated_tokens: int  # of them, those that the model sampled
    version_sum: int  # of each trajectory's oldest version
    version_min: int
    version_max: int


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """The new groups of a batch; its rows are listed group by group, groups in the order of their first row."""

    summaries: tuple[GroupSummary, ...]
    duplicate_groups: int  # left out, because they're known
    rows: NDArray[np.int64]  # [R] into the batch
    effective: NDArray[np.bool_]  # [R] whether the row's group is
    advantages: NDArray[np.float64]  # [R]
    versions: NDArray[np.int64]  # [R] the oldest of each row
    tokens: NDArray[np.int64]  # [R] of prompt and response


@dataclass(frozen=True, kw_only=True, slots=True)
class InsertReceipt:
    """What an insert added; a retried insert adds nothing and counts its groups as duplicates."""

    groups: int
    effective_groups: int
    trajectories: int
    admitted: int  # trajectories stored, those that the mode can draw
    duplicate_groups: int


def read_arrivals(batch: pa.RecordBatch, *, known: Container[str]) -> Arrivals:
    """Take a batch apart into groups.

    Args:
        batch: of TRAJECTORY_SCHEMA; a group's rows are all in one batch, a trajectory that is there twice counts once.
        known: ids of groups that arrived before.

    Returns:
        The groups that are not known.

    Raises:
        ValueError: when the schema is another one, a value is missing, a reward or an advantage isn't finite, or a row has no version.
    """
    schema = batch.schema
    if not schema.equals(TRAJECTORY_SCHEMA, check_metadata=True):
        check_schema(schema)
        if not schema.equals(TRAJECTORY_SCHEMA):
            raise ValueError(f"replay takes columns {TRAJECTORY_SCHEMA.names}, got {schema.names} (or other types)")
    _refuse_bad_rows(batch)
    encoded = batch.column("group_id").dictionary_encode()
    codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    new = np.fromiter((name not in known for name in names), dtype=bool, count=len(names))
    rows = _first_rows(batch.column("trajectory_id"))
    rows = rows[new[codes[rows]]]
    rows = rows[np.argsort(codes[rows], kind="stable")]
    codes = codes[rows]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    versions = oldest_versions(batch)[rows]
    correct = _flags(batch, "correct")[rows]
    num_rows, num_correct = _sums(np.ones(len(rows), np.int64), starts), _sums(correct, starts)
    effective = (num_correct > 0) & (num_correct < num_rows)
    sums = {
        "trajectories": num_rows,
        "effective": effective,
        "reward_sum": _sums(_numbers(batch, "reward")[rows], starts),
        "num_correct": num_correct,
        "num_correct_strict": _sums(_flags(batch, "correct_strict")[rows], starts),
        "num_correct_lenient": _sums(_flags(batch, "correct_lenient")[rows], starts),
        "num_truncated": _sums(pc.equal(batch.column("finish_reason"), "length").to_numpy(zero_copy_only=False)[rows], starts),
        "response_tokens": _sums(_lengths(batch, "response_token_ids")[rows], starts),
        "generated_tokens": _sums(_true_counts(batch, "loss_mask")[rows], starts),
        "version_sum": _sums(versions, starts),
        "version_min": np.minimum.reduceat(versions, starts) if len(starts) else versions,
        "version_max": np.maximum.reduceat(versions, starts) if len(starts) else versions,
    }
    columns = {
        "group_id": [names[code] for code in codes[starts].tolist()],
        "prompt_id": batch.column("prompt_id").take(pa.array(rows[starts])).to_pylist(),
        **{name: values.tolist() for name, values in sums.items()},
    }
    return Arrivals(
        summaries=tuple(map(GroupSummary._make, zip(*(columns[name] for name in GroupSummary._fields), strict=True))),
        duplicate_groups=int(np.count_nonzero(~new)),
        rows=rows,
        effective=np.repeat(effective, num_rows),
        advantages=_numbers(batch, "advantage")[rows],
        versions=versions,
        tokens=num_tokens(batch)[rows],
    )


def take_rows(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pa.RecordBatch:
    """Take rows of a batch; Arrow's own take copies list columns value by value, this copies runs of neighbours, which groups are.

    Args:
        batch: of any schema.
        rows: [R] in any order.

    Returns:
        The rows; all rows in order are the batch itself.
    """
    if len(rows) == 0:
        return batch.slice(0, 0)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1])
    lengths = np.diff(starts, append=len(rows)).tolist()
    slices = [batch.slice(row, length) for row, length in zip(rows[starts].tolist(), lengths, strict=True)]
    return slices[0] if len(slices) == 1 else pa.concat_batches(slices)


def num_tokens(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Count tokens.

    Args:
        batch: of TRAJECTORY_SCHEMA.

    Returns:
        [R] of prompt and response.
    """
    return _lengths(batch, "prompt_token_ids") + _lengths(batch, "response_token_ids")


def step_figures(consumed: Sequence[GroupSummary], *, policy_version: int) -> dict[str, float]:
    """Figures over all trajectories of the consumed groups, so that they don't depend on what is drawn.

    Args:
        consumed: at least one group.
        policy_version: of the learner.

    Returns:
        Ratios, means and counts by metric name; staleness in policy versions, lengths in tokens.
    """
    trajectories = sum(group.trajectories for group in consumed)

    def mean(name: str) -> float:
        return sum(getattr(group, name) for group in consumed) / trajectories

    return {
        "effective_query_ratio": sum(group.effective for group in consumed) / len(consumed),
        "reward/mean": mean("reward_sum"),
        "accuracy/mean": mean("num_correct"),
        "accuracy/strict": mean("num_correct_strict"),
        "accuracy/lenient": mean("num_correct_lenient"),
        "response/length_mean": mean("response_tokens"),
        "response/truncated_fraction": mean("num_truncated"),
        "staleness/mean": policy_version - mean("version_sum"),
        "staleness/max": policy_version - min(group.version_min for group in consumed),
        "rollout/groups": len(consumed),
        "rollout/trajectories": trajectories,
        "rollout/tokens_generated": sum(group.generated_tokens for group in consumed),
    }


def drop_figures(consumed: Sequence[GroupSummary], dropped: Sequence[GroupSummary]) -> dict[str, float]:
    """How much was dropped, and how that changed what is left to train on.

    Kept trajectories are compared with all, not with the dropped ones: so the figures say how far the data was bent, are exactly 0 when
    nothing was dropped, and don't jump when it was a single group.

    Args:
        consumed: at least one group.
        dropped: those of them that are not trained on.

    Returns:
        ``admission/dropped_groups``; ``admission/length_bias``, by which share the mean response of the kept ones is longer (above 0)
        or shorter than that of all; ``admission/difficulty_bias``, by how much their accuracy is higher (above 0: easier) or lower. No
        bias is told when nothing is left.
    """

    def means(groups: Sequence[GroupSummary]) -> tuple[float, float]:
        trajectories = sum(group.trajectories for group in groups)
        return sum(group.response_tokens for group in groups) / trajectories, sum(group.num_correct for group in groups) / trajectories

    figures = {"admission/dropped_groups": float(len(dropped))}
    gone = {group.group_id for group in dropped}
    if kept := [group for group in consumed if group.group_id not in gone]:
        (kept_length, kept_accuracy), (length, accuracy) = means(kept), means(consumed)
        figures["admission/length_bias"] = kept_length / length - 1.0 if length else 0.0
        figures["admission/difficulty_bias"] = kept_accuracy - accuracy
    return figures


def _refuse_bad_rows(batch: pa.RecordBatch) -> None:
    gaps = [i for i, column in enumerate(batch.columns) if column.null_count]
    missing = [field.name for field in map(batch.schema.field, gaps) if not field.nullable]
    if missing:
        raise ValueError(f"trajectories with missing values in {missing}")
    for name in ("reward", "advantage"):
        bad = np.flatnonzero(~np.isfinite(_numbers(batch, name)))
        if len(bad):
            row = int(bad[0])
            raise ValueError(f"trajectory {batch.column('trajectory_id')[row]} has {name} {batch.column(name)[row]}, which isn't finite")
    bad = np.flatnonzero(_lengths(batch, "version_spans") == 0)
    if len(bad):
        raise ValueError(f"trajectory {batch.column('trajectory_id')[int(bad[0])]} has no version span, so its staleness is unknown")


def oldest_versions(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Find the version that staleness counts from.

    Args:
        batch: of TRAJECTORY_SCHEMA, every row with at least one span.

    Returns:
        [R] the oldest version that sampled one of the row's tokens.
    """
    lengths = _lengths(batch, "version_spans")
    if len(lengths) == 0:
        return np.empty(0, np.int64)
    return np.minimum.reduceat(batch.column("version_spans").flatten().field("version").to_numpy(), np.cumsum(lengths) - lengths)


def _first_rows(column: pa.Array) -> NDArray[np.int64]:
    """The first row of each value, in order."""
    encoded = column.dictionary_encode()
    if len(encoded.dictionary) == len(column):  # nearly always: no value is there twice
        return np.arange(len(column))
    return np.sort(np.unique(encoded.indices.to_numpy(), return_index=True)[1])


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[np.float64]:
    return batch.column(name).to_numpy().astype(np.float64)


def _flags(batch: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    return batch.column(name).to_numpy(zero_copy_only=False)


def _lengths(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    offsets = batch.column(name).offsets.to_numpy()  # no list is missing, else value_lengths would have to tell
    return np.subtract(offsets[1:], offsets[:-1], dtype=np.int64)


def _true_counts(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """How many values are True in each row of a list of bool."""
    lengths, values = _lengths(batch, name), batch.column(name).flatten()
    if values.true_count == len(values):  # without triggers, which is nearly always, nothing needs counting
        return lengths
    total = np.concatenate([[0], np.cumsum(values.to_numpy(zero_copy_only=False))])
    ends = np.cumsum(lengths)
    return total[ends] - total[ends - lengths]


def _sums(values: NDArray, starts: NDArray[np.int64]) -> NDArray:
    """Sums of the runs that begin at ``starts``."""
    exact = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    return np.add.reduceat(exact, starts) if len(starts) else exact[:0]

"""Trajectories as Arrow: one versioned schema from the rollout actor through replay to the learner and to disk.

Owns the layout and both conversions. Must not know Ray, torch, the engines or configuration objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from algorithms.types import ImageRef, SampledTrajectory, Segment, Trajectory, VersionSpan

SCHEMA_VERSION = 2

_IMAGE = pa.struct([("path", pa.string()), ("sha256", pa.string())])
_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("version", pa.int64())])
_SEGMENT = pa.struct([("kind", pa.string()), ("start", pa.int32()), ("end", pa.int32())])

TRAJECTORY_SCHEMA = pa.schema(
    [
        pa.field("trajectory_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("images", pa.list_(_IMAGE), nullable=False),
        pa.field("response_token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_text", pa.string(), nullable=False),
        pa.field("behavior_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("loss_mask", pa.list_(pa.bool_()), nullable=False),
        pa.field("version_spans", pa.list_(_SPAN), nullable=False),
        pa.field("segments", pa.list_(_SEGMENT), nullable=False),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("y1_reward", pa.float32()),
        pa.field("advantage", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("correct_strict", pa.bool_(), nullable=False),
        pa.field("correct_lenient", pa.bool_(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
    ],
    metadata={b"rethinker.schema": b"trajectory", b"rethinker.schema_version": str(SCHEMA_VERSION).encode()},
)
"""One row a trajectory; units and meanings as in algorithms.types.Trajectory."""

TOKEN_COLUMNS = ("prompt_token_ids", "response_token_ids", "response_text", "behavior_logprobs", "loss_mask")
"""Columns whose size grows with the number of tokens: nearly all bytes of a trajectory, in few columns."""

NARROW_COLUMNS = tuple(name for name in TRAJECTORY_SCHEMA.names if name not in TOKEN_COLUMNS)

SAMPLE_FIELDS = (
    pa.field("key", pa.int64(), nullable=False),
    pa.field("probability", pa.float64(), nullable=False),
    pa.field("table_size", pa.int64(), nullable=False),
    pa.field("age", pa.int64(), nullable=False),
    pa.field("times_sampled", pa.int64(), nullable=False),
    pa.field("fresh", pa.bool_(), nullable=False),
    pa.field("update", pa.int32(), nullable=False),
)
SAMPLE_SCHEMA = pa.schema([*TRAJECTORY_SCHEMA, *SAMPLE_FIELDS], metadata=TRAJECTORY_SCHEMA.metadata)
"""A trajectory with what replay says of its draw; meanings as in algorithms.types.SampledTrajectory."""


def check_schema(schema: pa.Schema) -> None:
    """Refuse Arrow data of another layout or version.

    Args:
        schema: of the data at the door, its metadata included.

    Raises:
        ValueError: when it isn't a trajectory schema of SCHEMA_VERSION.
    """
    metadata = schema.metadata or {}
    version = metadata.get(b"rethinker.schema_version", b"none").decode()
    if metadata.get(b"rethinker.schema") != b"trajectory" or version != str(SCHEMA_VERSION):
        raise ValueError(f"not a trajectory schema of version {SCHEMA_VERSION}: found version {version}, columns {schema.names}")


_IMAGE_KEY = b"rethinker.image."


def attach_images(table: pa.Table, images: Mapping[str, bytes]) -> pa.Table:
    """Let images travel with the rows that show them, each once.

    Args:
        table: with this schema's metadata.
        images: a file's bytes by their SHA-256.

    Returns:
        The same rows; the images are in the schema's metadata.
    """
    return table.replace_schema_metadata({**table.schema.metadata, **{_IMAGE_KEY + name.encode(): images[name] for name in sorted(images)}})


def attached_images(table: pa.Table) -> dict[str, bytes]:
    """Read the images that travel with rows; the inverse of attach_images.

    Args:
        table: of SAMPLE_SCHEMA.

    Returns:
        A file's bytes by their SHA-256; images that were inserted as paths only are not among them.
    """
    metadata = table.schema.metadata or {}
    return {key.removeprefix(_IMAGE_KEY).decode(): value for key, value in metadata.items() if key.startswith(_IMAGE_KEY)}


def to_record_batch(trajectories: Iterable[Trajectory]) -> pa.RecordBatch:
    """Write trajectories as one record batch of TRAJECTORY_SCHEMA.

    Args:
        trajectories: any number, also none.

    Returns:
        One row each, in order.
    """
    rows = list(trajectories)

    def values(name: str) -> list:
        return [getattr(row, name) for row in rows]

    columns = {
        **{name: values(name) for name in TRAJECTORY_SCHEMA.names},
        "images": [[{"path": image.path, "sha256": image.sha256} for image in row.images] for row in rows],
        "version_spans": [[{"start": s.start, "end": s.end, "version": s.version} for s in row.version_spans] for row in rows],
        "segments": [[{"kind": s.kind, "start": s.start, "end": s.end} for s in row.segments] for row in rows],
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in TRAJECTORY_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=TRAJECTORY_SCHEMA)


def from_arrow(data: pa.RecordBatch | pa.Table) -> list[Trajectory]:
    """Read trajectories back; the inverse of to_record_batch.

    Args:
        data: with TRAJECTORY_SCHEMA's columns, further ones are left alone.

    Returns:
        One trajectory a row, in order.

    Raises:
        ValueError: when the schema is another one.
    """
    check_schema(data.schema)
    table = pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else data
    per_token = {
        name: _split(table.column(name).combine_chunks(), dtype)
        for name, dtype in (
            ("prompt_token_ids", np.int32),
            ("response_token_ids", np.int32),
            ("behavior_logprobs", np.float32),
            ("loss_mask", np.bool_),
        )
    }
    plain = {name: table.column(name).to_pylist() for name in TRAJECTORY_SCHEMA.names if name not in per_token}
    plain["images"] = [tuple(ImageRef(**image) for image in row) for row in plain["images"]]
    plain["version_spans"] = [tuple(VersionSpan(**span) for span in row) for row in plain["version_spans"]]
    plain["segments"] = [tuple(Segment(**segment) for segment in row) for row in plain["segments"]]
    columns = {**plain, **per_token}
    return [Trajectory(**{name: column[i] for name, column in columns.items()}) for i in range(table.num_rows)]


def sampled_from_arrow(data: pa.RecordBatch | pa.Table) -> list[SampledTrajectory]:
    """Read what replay hands out.

    Args:
        data: of SAMPLE_SCHEMA.

    Returns:
        One sampled trajectory a row, in order.

    Raises:
        ValueError: when the schema is another one.
    """
    trajectories = from_arrow(data)
    draws = {field.name: data.column(field.name).to_pylist() for field in SAMPLE_FIELDS}
    return [
        SampledTrajectory(trajectory=trajectory, **{name: column[i] for name, column in draws.items()})
        for i, trajectory in enumerate(trajectories)
    ]


def _split(column: pa.Array | pa.ChunkedArray, dtype: type) -> Sequence[np.ndarray]:
    """Cut a list column into one NumPy array a row; numbers share Arrow's memory and are read-only."""
    array = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks) if column.num_chunks else column
    if len(array) == 0:
        return []
    flat = array.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    return np.split(flat, np.cumsum(lengths)[:-1])

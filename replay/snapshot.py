"""A buffer's state on disk: one Arrow IPC file with the rows, one JSON file with everything else.

Owns the two files and their checks. Must not know what the state means, nor Ray. The JSON file names the Arrow file and is replaced
last, so a snapshot is whole or is the one before; both carry SHA-256 sums, so a damaged one is never read as data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from algorithms.schema import TRAJECTORY_SCHEMA, check_schema
from replay.storage import KNOWN_FIELDS, Storage

FORMAT = 2
STATE_FILE = "state.json"
ROWS_PER_BATCH = 256  # of the file, and of the restored storage, which frees memory by whole batches
SNAPSHOT_SCHEMA = pa.schema(
    [*TRAJECTORY_SCHEMA, *(pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in KNOWN_FIELDS.items())],
    metadata=TRAJECTORY_SCHEMA.metadata,
)
"""The trajectories with what replay knows of each: readable by anyone with pyarrow."""


class SnapshotError(RuntimeError):
    """A snapshot is missing, damaged or of another kind."""


def write_snapshot(folder: str | os.PathLike[str], storage: Storage, waiting: Sequence[pa.RecordBatch], state: dict[str, Any]) -> None:
    """Write a snapshot; the one that was there stays valid until the new one is whole.

    Args:
        folder: made if missing, and used for snapshots of this buffer alone.
        storage: the table's rows; not changed meanwhile.
        waiting: rows of groups that wait, which have no key yet; stored behind the table's.
        state: what JSON can hold.

    Raises:
        OSError: when the folder can't be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rows_tmp, state_tmp = target / ".rows.tmp", target / ".state.tmp"
    try:
        with pa.OSFile(str(rows_tmp), "wb") as sink, pa.ipc.new_file(sink, SNAPSHOT_SCHEMA) as writer:
            for batch in (*_saved_batches(storage), *map(_keyless, waiting)):
                writer.write_batch(batch)
        digest = _file_digest(rows_tmp)
        rows_file = f"trajectories-{digest[:16]}.arrow"
        counts = {"num_rows": len(storage), "num_waiting": len(waiting), "next_key": storage.next_key}
        body = {"rows_file": rows_file, "rows_sha256": digest, **counts, "state": state}
        state_tmp.write_text(json.dumps({"format": FORMAT, "sha256": _body_digest(body), "body": body}), encoding="utf-8")
        for path, name in ((rows_tmp, rows_file), (state_tmp, STATE_FILE)):
            _sync(path)
            os.replace(path, target / name)
            _sync(target)
    finally:
        rows_tmp.unlink(missing_ok=True)
        state_tmp.unlink(missing_ok=True)
    for old in target.glob("trajectories-*.arrow"):
        if old.name != rows_file:
            old.unlink()


def read_snapshot(folder: str | os.PathLike[str]) -> tuple[Storage, list[pa.RecordBatch], dict[str, Any]]:
    """Read a snapshot back; the inverse of write_snapshot.

    Args:
        folder: with a snapshot.

    Returns:
        The table's rows, those of the groups that wait, and the state.

    Raises:
        SnapshotError: when it's missing, damaged, of another format or of another schema; the message names the file.
    """
    body = _read_body(Path(folder) / STATE_FILE)
    rows_path = Path(folder) / body["rows_file"]
    if not rows_path.is_file():
        raise SnapshotError(f"{rows_path} is missing, though {STATE_FILE} beside it names it")
    found = _file_digest(rows_path)
    if found != body["rows_sha256"]:
        raise SnapshotError(f"{rows_path} is damaged: SHA-256 {found}, written as {body['rows_sha256']}")
    try:
        with pa.OSFile(str(rows_path)) as source, pa.ipc.open_file(source) as reader:
            check_schema(reader.schema)
            if not reader.schema.equals(SNAPSHOT_SCHEMA):
                raise ValueError(f"its columns are {reader.schema.names}, not {SNAPSHOT_SCHEMA.names}")
            parts = [_saved_part(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        num_stored = len(parts) - body["num_waiting"]
        storage = Storage.rebuild(TRAJECTORY_SCHEMA, parts[:num_stored], next_key=body["next_key"])
    except (pa.ArrowInvalid, ValueError) as error:
        raise SnapshotError(f"{rows_path} can't be read: {error}") from error
    if len(storage) != body["num_rows"]:
        raise SnapshotError(f"{rows_path} holds {len(storage)} rows, {STATE_FILE} beside it says {body['num_rows']}")
    return storage, [rows for rows, _ in parts[num_stored:]], body["state"]


def _saved_batches(storage: Storage) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(storage), ROWS_PER_BATCH):
        positions = np.arange(start, min(start + ROWS_PER_BATCH, len(storage)))
        known = [pa.array(storage.column(name)[positions]) for name in KNOWN_FIELDS]
        yield pa.RecordBatch.from_arrays([*storage.gather(positions).columns, *known], schema=SNAPSHOT_SCHEMA)


def _keyless(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of a waiting group: nothing is known of them yet."""
    unknown = [pa.array(np.full(rows.num_rows, -1), type=pa.from_numpy_dtype(dtype)) for dtype in KNOWN_FIELDS.values()]
    return pa.RecordBatch.from_arrays([*rows.columns, *unknown], schema=SNAPSHOT_SCHEMA)


def _saved_part(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, np.ndarray]]:
    payload = pa.RecordBatch.from_arrays([batch.column(name) for name in TRAJECTORY_SCHEMA.names], schema=TRAJECTORY_SCHEMA)
    return payload, {name: batch.column(name).to_numpy() for name in KNOWN_FIELDS}


def _read_body(path: Path) -> dict[str, Any]:
    """The checked content of the JSON file."""
    if not path.is_file():
        raise SnapshotError(f"no replay snapshot: {path} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written, version, body = content["sha256"], content["format"], content["body"]
    except (ValueError, KeyError, TypeError) as error:  # ValueError: JSON's and UTF-8's own errors
        raise SnapshotError(f"{path} isn't a replay snapshot: {error!r}") from error
    if version != FORMAT:
        raise SnapshotError(f"{path} is of format {version}, this version reads {FORMAT}")
    if _body_digest(body) != written:
        raise SnapshotError(f"{path} is damaged: its content doesn't match its SHA-256 {written}")
    return body


def _body_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Ask the disk to hold a file, or a folder's names, before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A buffer's state on disk: an Arrow IPC file with the rows, one with the images if there are any, one JSON file with everything else.

Owns the files and their checks. Must not know what the state means, nor Ray. The JSON file names the Arrow files and is replaced last, so a
snapshot is whole or is the one before; all carry SHA-256 sums, so a damaged one is never read as data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from algorithms.schema import NARROW_COLUMNS, TRAJECTORY_SCHEMA, check_schema
from replay.journal import sync_path
from replay.storage import KNOWN_FIELDS, Storage

FORMAT = 4
STATE_FILE = "state.json"
ROWS_PER_BATCH = 256  # of the file, and of the restored storage, which frees memory by whole batches
IMAGES_SCHEMA = pa.schema([pa.field("sha256", pa.string(), nullable=False), pa.field("content", pa.binary(), nullable=False)])
SNAPSHOT_SCHEMA = pa.schema(
    [
        *TRAJECTORY_SCHEMA,
        *(pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in KNOWN_FIELDS.items()),
    ],
    metadata=TRAJECTORY_SCHEMA.metadata,
)
"""The trajectories with what replay knows of each: readable by anyone with pyarrow."""


class SnapshotError(RuntimeError):
    """A snapshot is missing, damaged or of another kind."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A buffer's state."""

    storage: Storage  # the table's rows
    waiting: list[pa.RecordBatch]  # rows of the groups that wait, group by group; they have no key yet
    waiting_serials: list[int]  # of each group's first row; the others follow
    next_serial: int  # above those of all rows
    images: Mapping[str, bytes]  # by SHA-256
    state: dict[str, Any]  # the rest, what JSON can hold


def write_snapshot(folder: str | os.PathLike[str], saved: Saved) -> None:
    """Write a snapshot; the one that was there stays valid until the new one is whole.

    Args:
        folder: made if missing, and used for snapshots of this buffer alone.
        saved: not changed meanwhile.

    Raises:
        OSError: when the folder can't be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rows_tmp, images_tmp, state_tmp = target / ".rows.tmp", target / ".images.tmp", target / ".state.tmp"
    try:
        _write_arrow(rows_tmp, SNAPSHOT_SCHEMA, (*_saved_batches(saved.storage), *map(_keyless, saved.waiting)))
        parts = [("trajectories", rows_tmp)]
        if saved.images:
            _write_arrow(images_tmp, IMAGES_SCHEMA, _saved_images(saved.images))
            parts.append(("images", images_tmp))
        body: dict[str, Any] = {"num_rows": len(saved.storage), "num_waiting": len(saved.waiting), "layout": saved.storage.layout}
        files = []
        for part, temporary in parts:
            digest = _file_digest(temporary)
            files.append((temporary, f"{part}-{digest[:16]}.arrow"))
            body |= {part: {"file": files[-1][1], "sha256": digest}}
        body["state"] = saved.state
        text = _body_text(body)
        state_tmp.write_text(f'{{"format": {FORMAT}, "sha256": "{_text_digest(text)}", "body": {text}}}', encoding="utf-8")
        for path, name in (*files, (state_tmp, STATE_FILE)):
            sync_path(path)
            os.replace(path, target / name)
            sync_path(target)
    finally:
        for path in (rows_tmp, images_tmp, state_tmp):
            path.unlink(missing_ok=True)
    for old in target.glob("*.arrow"):
        if old.name not in {name for _, name in files}:
            old.unlink()


def read_snapshot(folder: str | os.PathLike[str]) -> Saved:
    """Read a snapshot back; the inverse of write_snapshot.

    Args:
        folder: with a snapshot.

    Returns:
        What was saved.

    Raises:
        SnapshotError: when it's missing, damaged, of another format or of another schema; the message names the file.
    """
    body = _read_body(Path(folder) / STATE_FILE)
    rows_path = Path(folder) / body["trajectories"]["file"]
    batches = _read_arrow(rows_path, body["trajectories"]["sha256"], SNAPSHOT_SCHEMA)
    ends = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
    parts = [_saved_part(batch, serial) for batch, serial in zip(batches, ends[:-1], strict=True)]
    num_stored = len(parts) - body["num_waiting"]
    try:
        storage = Storage.rebuild(TRAJECTORY_SCHEMA, parts[:num_stored], body["layout"], NARROW_COLUMNS)
    except ValueError as error:
        raise SnapshotError(f"{rows_path} can't be read: {error}") from error
    if len(storage) != body["num_rows"]:
        raise SnapshotError(f"{rows_path} holds {len(storage)} rows, {STATE_FILE} beside it says {body['num_rows']}")
    images: dict[str, bytes] = {}
    if "images" in body:
        for batch in _read_arrow(Path(folder) / body["images"]["file"], body["images"]["sha256"], IMAGES_SCHEMA):
            images |= zip(batch.column("sha256").to_pylist(), batch.column("content").to_pylist(), strict=True)
    return Saved(
        storage=storage,
        waiting=[rows for rows, _ in parts[num_stored:]],
        waiting_serials=ends[num_stored:-1],
        next_serial=ends[-1],
        images=images,
        state=body["state"],
    )


def _write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _read_arrow(path: Path, sha256: str, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The record batches of a file that is whole."""
    if not path.is_file():
        raise SnapshotError(f"{path} is missing, though {STATE_FILE} beside it names it")
    found = _file_digest(path)
    if found != sha256:
        raise SnapshotError(f"{path} is damaged: SHA-256 {found}, written as {sha256}")
    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            if schema is SNAPSHOT_SCHEMA:
                check_schema(reader.schema)
            if not reader.schema.equals(schema):
                raise ValueError(f"its columns are {reader.schema.names}, not {schema.names}")
            return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowInvalid, ValueError) as error:
        raise SnapshotError(f"{path} can't be read: {error}") from error


def _saved_batches(storage: Storage) -> Iterator[pa.RecordBatch]:
    places = storage.places
    for start in range(0, len(places), ROWS_PER_BATCH):
        part = places[start : start + ROWS_PER_BATCH]
        known = [pa.array(storage.column(name)[part]) for name in KNOWN_FIELDS]
        yield pa.RecordBatch.from_arrays([*storage.gather(part).columns, *known], schema=SNAPSHOT_SCHEMA)


def _saved_images(images: Mapping[str, bytes]) -> Iterator[pa.RecordBatch]:
    """One batch an image, so that none is copied together with the others."""
    for name in sorted(images):
        yield pa.RecordBatch.from_arrays([pa.array([name]), pa.array([images[name]], type=pa.binary())], schema=IMAGES_SCHEMA)


def _keyless(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of a waiting group: nothing is known of them yet."""
    unknown = [pa.array(np.full(rows.num_rows, -1), type=pa.from_numpy_dtype(dtype)) for dtype in KNOWN_FIELDS.values()]
    return pa.RecordBatch.from_arrays([*rows.columns, *unknown], schema=SNAPSHOT_SCHEMA)


def _saved_part(batch: pa.RecordBatch, serial: int) -> tuple[pa.RecordBatch, dict[str, np.ndarray]]:
    """Rows and what is known of them; they count as if they had arrived as they lie in the file."""
    payload = pa.RecordBatch.from_arrays([batch.column(i) for i in range(len(TRAJECTORY_SCHEMA))], schema=TRAJECTORY_SCHEMA)
    known = {name: batch.column(len(TRAJECTORY_SCHEMA) + i).to_numpy() for i, name in enumerate(KNOWN_FIELDS)}
    return payload, {**known, "serial": np.arange(serial, serial + batch.num_rows)}


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
    if _text_digest(_body_text(body)) != written:
        raise SnapshotError(f"{path} is damaged: its content doesn't match its SHA-256 {written}")
    return body


def _body_text(body: Any) -> str:
    return json.dumps(body, sort_keys=True)


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

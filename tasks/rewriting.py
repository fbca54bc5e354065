"""A data set written anew: some of its rows, with more columns, and its pictures beside it.

Owns the copy; every other column stays as it was. Must not know what columns mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.storage import Storage, Unreadable, find_storage


def write_rows(
    source: str | os.PathLike[str],
    target: Path,
    *,
    keep: Collection[int] | None = None,
    columns: Mapping[str, Mapping[int, float]] | None = None,
    image_paths: Iterable[str] = (),
) -> int:
    """Copy a data set's rows into a new folder, a few at a time.

    Args:
        source: path of the data set.
        target: folder to write, which must not hold anything yet; what it holds is a whole data set or nothing.
        keep: row numbers; None: all rows.
        columns: numbers by row number, by name; rows without one get null.
        image_paths: of its prompts; the folders below the source that they are in are linked, not copied.

    Returns:
        Rows written.

    Raises:
        DataError: when the target holds something, or the source can't be read.
    """
    storage = find_storage(source)
    if target.exists() and any(path.name != "pass_rates.journal" for path in target.iterdir()):
        raise DataError(f"{target} isn't empty; name a new folder to write to")
    target.mkdir(parents=True, exist_ok=True)
    file = target / ("data.jsonl" if storage.kind == "jsonl" else "data.parquet")
    scratch = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        write = _write_lines if storage.kind == "jsonl" else _write_parquet
        count = write(storage, scratch, keep, columns or {})
        _link_pictures(storage.root, target, image_paths)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
    return count


def _write_lines(storage: Storage, target: Path, keep: Collection[int] | None, columns: Mapping[str, Mapping[int, float]]) -> int:
    count = 0
    with open(target, "w") as lines:
        for number, row in enumerate(storage.rows()):
            if (keep is None or number in keep) and not isinstance(row.get(""), Unreadable):
                lines.write(json.dumps({**row, **{name: values.get(number) for name, values in columns.items()}}) + "\n")
                count += 1
    return count


def _write_parquet(storage: Storage, target: Path, keep: Collection[int] | None, columns: Mapping[str, Mapping[int, float]]) -> int:
    names = [name for name in storage.columns if name not in columns]
    writer: pq.ParquetWriter | None = None
    start = count = 0
    try:
        for file in storage.files:
            for batch in storage.batches(file, names):
                numbers = range(start, start + batch.num_rows)
                start += batch.num_rows
                chosen = [number for number in numbers if keep is None or number in keep]
                table = pa.Table.from_batches([batch]).take([number - numbers.start for number in chosen])
                for name, values in columns.items():
                    table = table.append_column(name, pa.array([values.get(number) for number in chosen], pa.float64()))
                if writer is None:
                    writer = pq.ParquetWriter(target, table.schema)
                writer.write_table(table)
                count += len(chosen)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise DataError(f"{storage.root}: there are no rows to write")
    return count


def _link_pictures(root: Path, target: Path, image_paths: Iterable[str]) -> None:
    """Link what lies right below the source's folder and holds pictures, by relative links, so that both folders can move together."""
    tops = {Path(path).relative_to(root).parts[0] for path in image_paths if Path(path).is_relative_to(root)}
    for top in sorted(tops):
        (target / top).symlink_to(os.path.relpath(root / top, target))

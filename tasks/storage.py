"""Data files on disk as rows: Parquet, JSON lines, and the Arrow files that Hugging Face's ``datasets`` saves.

Owns finding the files and reading them in bounded memory. Must not know what columns mean.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError

StorageKind = Literal["parquet", "jsonl", "arrow"]

SUFFIXES: dict[str, StorageKind] = {".parquet": "parquet", ".jsonl": "jsonl", ".arrow": "arrow"}
_BATCH_ROWS = 64  # rows with pictures in them are megabytes each
_SHARD = re.compile(r"(.*?)-?[0-9]{5}-of-[0-9]{5}")
_SCHEMA_LINES = 200  # of a JSON lines file, read to learn its keys


class Unreadable:
    """What stands in a row for a value that Python can't hold, text that isn't UTF-8 for example."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """The files of one data set."""

    root: Path  # relative paths in rows start here
    kind: StorageKind
    files: tuple[Path, ...]
    columns: tuple[str, ...]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Read rows in the files' order, a few at a time.

        Args:
            columns: to read, of those that there are; None: all.

        Yields:
            Values by column; one that can't be read is an Unreadable, and a line that isn't JSON is one under the key "".

        Raises:
            DataError: when a file is damaged.
        """
        wanted = [name for name in self.columns if columns is None or name in columns]
        for file in self.files:
            if self.kind == "jsonl":
                yield from _json_rows(file)
            else:
                for batch in self.batches(file, wanted):
                    values = [_values(batch.column(name)) for name in wanted]
                    for row in zip(*values, strict=True):
                        yield dict(zip(wanted, row, strict=True))

    def batches(self, file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read a Parquet or Arrow file.

        Args:
            file: one of files.
            columns: to read.

        Yields:
            Record batches of a few rows.

        Raises:
            DataError: when the file is damaged.
        """
        try:
            if self.kind == "parquet":
                with pq.ParquetFile(file) as parquet:
                    yield from parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))
            else:
                with pa.memory_map(str(file)) as source:
                    for batch in _arrow_batches(source):
                        for start in range(0, batch.num_rows, _BATCH_ROWS):
                            yield batch.select(list(columns)).slice(start, _BATCH_ROWS)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # damaged names of columns are a UnicodeDecodeError
            raise DataError(f"{file}: not a readable {self.kind} file: {error}") from error


def find_storage(path: str | os.PathLike[str]) -> Storage:
    """Find the data files that a path means.

    Args:
        path: a file, or a folder that holds one data set: one file or the shards of one, in it or in its sub-folder data/.

    Returns:
        Its files.

    Raises:
        DataError: when there are none, or several that don't belong together; the message names what was found.
    """
    root = Path(os.path.abspath(path))
    if root.is_file():
        files, root = [root], root.parent
    elif (root / "dataset_dict.json").is_file():
        return find_storage(root / _only_split(root))
    elif root.is_dir():
        files = _data_files(root)
    else:
        raise DataError(f"{root}: no such data folder or file")
    kind = SUFFIXES.get(files[0].suffix)
    if kind is None:
        raise DataError(f"{files[0]}: no known kind of data file, expected one of {', '.join(SUFFIXES)}")
    return Storage(root=root, kind=kind, files=tuple(files), columns=_columns(files, kind))


def _data_files(root: Path) -> list[Path]:
    if (root / "state.json").is_file():  # save_to_disk; its shards are listed in their order
        try:
            return [root / str(entry["filename"]) for entry in json.loads((root / "state.json").read_bytes())["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{root / 'state.json'}: not what datasets' save_to_disk writes: {error!r}") from error
    for folder in (root, root / "data"):
        files = sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            continue
        sets = {(match[1] if (match := _SHARD.fullmatch(file.stem)) else file.stem, file.suffix) for file in files}
        if len(sets) > 1:
            found = ", ".join(file.name for file in files[:6])
            raise DataError(f"{folder}: several data files, found {found}; name one of them, or keep one data set in a folder")
        return files
    raise DataError(f"{root}: found none of the data files *.parquet, *.jsonl, or what datasets' save_to_disk writes")


def _only_split(root: Path) -> str:
    try:
        splits = list(json.loads((root / "dataset_dict.json").read_bytes())["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root / 'dataset_dict.json'}: not what datasets' save_to_disk writes: {error!r}") from error
    if len(splits) != 1:
        raise DataError(f"{root} holds the splits {', '.join(splits) or 'none'}; name the folder of one of them")
    return str(splits[0])


def _columns(files: Sequence[Path], kind: StorageKind) -> tuple[str, ...]:
    """The columns that all files have; of JSON lines, the keys of the first lines."""
    try:
        if kind == "jsonl":
            names: dict[str, None] = {}
            for number, row in enumerate(row for file in files for row in _json_rows(file)):
                if number == _SCHEMA_LINES:
                    break
                names.update(dict.fromkeys(row))
            names.pop("", None)
            return tuple(names)
        found = [_arrow_names(file) if kind == "arrow" else pq.read_schema(file).names for file in files]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{files[0]}: not a readable {kind} file: {error}") from error
    for file, names_of_file in zip(files, found, strict=True):
        if set(names_of_file) != set(found[0]):
            raise DataError(f"{file} has the columns {', '.join(names_of_file)}, but {files[0].name} {', '.join(found[0])}")
    return tuple(found[0])


def _arrow_names(file: Path) -> list[str]:
    with pa.memory_map(str(file)) as source:
        return list(_arrow_reader(source).schema.names)


def _arrow_reader(source: pa.MemoryMappedFile) -> Any:
    """save_to_disk writes streams; files in Arrow's file format are read, too."""
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source)


def _arrow_batches(source: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    reader = _arrow_reader(source)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(file, "rb") as lines:
            for line in lines:
                if line.strip():
                    yield _json_row(line)
    except OSError as error:
        raise DataError(f"{file}: not a readable jsonl file: {error}") from error


def _json_row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"": Unreadable(f"the line isn't JSON: {error}")}
    if not isinstance(row, dict):
        return {"": Unreadable(f"the line isn't a JSON object but {type(row).__name__}")}
    return row


def _values(column: pa.Array) -> list[Any]:
    """A column's values; one that Python can't hold costs its own row only."""
    try:
        return column.to_pylist()
    except (ValueError, pa.ArrowException):
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, pa.ArrowException) as error:
        return Unreadable(str(error))

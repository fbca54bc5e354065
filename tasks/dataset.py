"""Prompts from a folder in ViRL39K's layout, selected by configuration, in a seeded and resumable order.

Owns what makes a row usable. Must not know tokenizers, images' pixels or engines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algorithms.types import Prompt
from conf.schema import DataConfig, ImageSelection
from tasks.errors import DataError
from tasks.extraction import unboxed

REQUIRED_COLUMNS = ("question", "answer", "category", "source", "qid", "image")  # ViRL39K's pass rates aren't used

_UNREADABLE = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A selected row that can't be a prompt."""

    row_id: str  # its qid, or "row N" when it has none
    reason: str


class PromptDataset(Sequence[Prompt]):
    """The usable prompts of a data folder that a selection keeps.

    A row that can't be used is no error here but an entry of ``bad_rows``; how many of them are too many is the run's decision.
    """

    def __init__(self, path: str | os.PathLike[str], selection: DataConfig | None = None) -> None:
        """Read the folder.

        Args:
            path: of a folder with one *.parquet file and the pictures that its rows name relative to the folder.
            selection: categories, exclude_categories, sources and images are applied; None keeps every row.

        Raises:
            DataError: when the folder, the file or a column is missing, the file isn't readable, or the selection keeps no usable row.
        """
        self.path = Path(os.path.abspath(path))
        self.bad_rows: list[BadRow] = []
        self.num_selected = 0  # rows that the selection keeps, bad ones included
        self._prompts: list[Prompt] = []
        selection = selection or DataConfig()
        file = _parquet_file(self.path)
        columns = _read_columns(file)
        known: set[str] = set()
        images = _ImageFolder(self.path)
        for number, values in enumerate(zip(*(columns[name] for name in REQUIRED_COLUMNS), strict=True)):
            row = dict(zip(REQUIRED_COLUMNS, values, strict=True))
            if not _selected(row, selection):
                continue
            self.num_selected += 1
            row_id = _text(row["qid"]) or f"row {number}"
            try:
                prompt = _to_prompt(row, images)
                if prompt.prompt_id in known:
                    raise ValueError("another row has the same qid")
            except ValueError as error:
                self.bad_rows.append(BadRow(row_id=row_id, reason=str(error)))
                continue
            known.add(prompt.prompt_id)
            self._prompts.append(prompt)
        if not self._prompts:
            first = f"; the first: {self.bad_rows[0].row_id}: {self.bad_rows[0].reason}" if self.bad_rows else ""
            counts = f"{len(columns['qid'])} rows, {self.num_selected} kept by the selection, {len(self.bad_rows)} bad"
            raise DataError(f"{file}: no usable prompt: {counts}{first}")

    def __len__(self) -> int:
        """Number of usable prompts."""
        return len(self._prompts)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        """The prompt at an index in [0, len), or a list for a slice."""
        return self._prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        """All prompts, in the file's order."""
        return iter(self._prompts)


class PromptOrder:
    """An endless, seeded order over prompts: every epoch is a new permutation, so no prompt repeats within one.

    Example: ``order = PromptOrder(1000, seed=1); index, visit = order.next()``; ``f"{prompt_id}@{visit}"`` is unique in a run.
    """

    def __init__(self, num_prompts: int, *, seed: int) -> None:
        """Start at the first epoch.

        Args:
            num_prompts: indices are [0, num_prompts).
            seed: of the permutations.

        Raises:
            ValueError: when there are no prompts.
        """
        if num_prompts < 1:
            raise ValueError(f"an order needs at least one prompt, got num_prompts={num_prompts}")
        self._num_prompts = num_prompts
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._permutation = self._shuffled()

    def next(self) -> tuple[int, int]:
        """Take the next prompt.

        Returns:
            Its index, and how often it was taken before (the epoch).
        """
        if self._position == self._num_prompts:
            self._epoch += 1
            self._position = 0
            self._permutation = self._shuffled()
        index = int(self._permutation[self._position])
        self._position += 1
        return index, self._epoch

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps: plain integers."""
        return {"num_prompts": self._num_prompts, "seed": self._seed, "epoch": self._epoch, "position": self._position}

    def restore(self, state: dict[str, int]) -> None:
        """Go on where state() was taken.

        Args:
            state: of an order over the same data and seed.

        Raises:
            ValueError: when it belongs to other data or another seed, or is out of range.
        """
        for key, own in (("num_prompts", self._num_prompts), ("seed", self._seed)):
            if state.get(key) != own:
                raise ValueError(f"this order has {key}={own}, the saved one {key}={state.get(key)}: the data or the seed was changed")
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= self._num_prompts:
            raise ValueError(f"a saved order with epoch={epoch}, position={position} doesn't fit {self._num_prompts} prompts")
        self._epoch, self._position = epoch, position
        self._permutation = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng([self._seed, self._epoch]).permutation(self._num_prompts)


class _ImageFolder:
    """Resolves relative picture paths; remembers what it has looked up."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._found: dict[str, bool] = {}

    def resolve(self, relative: str) -> str:
        path = os.path.normpath(os.path.join(self._root, relative))
        if os.path.isabs(relative) or not path.startswith(self._root.rstrip(os.sep) + os.sep):
            raise ValueError(f"image path leaves the data folder: {relative!r}")
        if path not in self._found:
            self._found[path] = os.path.isfile(path)
        if not self._found[path]:
            raise ValueError(f"image file is missing: {relative!r}")
        return path


def _parquet_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such data folder; expected one *.parquet file and images/ in it")
    files = sorted(folder.glob("*.parquet"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{folder}: expected one *.parquet file with the columns {', '.join(REQUIRED_COLUMNS)}, found {found}")
    return files[0]


def _read_columns(file: Path) -> dict[str, list[Any]]:
    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in REQUIRED_COLUMNS if name not in names]
            if missing:
                raise DataError(f"{file}: missing columns {', '.join(missing)}; found {', '.join(names)}")
            table = parquet.read(columns=list(REQUIRED_COLUMNS))
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # damaged names of columns are a UnicodeDecodeError
        raise DataError(f"{file}: not a readable Parquet file: {error}") from error
    return {name: _values(table.column(name)) for name in REQUIRED_COLUMNS}


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; one that Python can't hold (text that isn't UTF-8) costs its own row only."""
    try:
        return column.to_pylist()
    except (ValueError, pa.ArrowException):
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, pa.ArrowException):
        return _UNREADABLE


def _text(value: Any) -> str:
    return "" if value is None or value is _UNREADABLE else str(value).strip()


def _selected(row: dict[str, Any], selection: DataConfig) -> bool:
    category, source = _text(row["category"]), _text(row["source"])
    if selection.categories and category not in selection.categories:
        return False
    if category in selection.exclude_categories or (selection.sources and source not in selection.sources):
        return False
    has_images = row["image"] is _UNREADABLE or bool(row["image"])
    return selection.images is ImageSelection.any or has_images == (selection.images is ImageSelection.only)


def _to_prompt(row: dict[str, Any], images: _ImageFolder) -> Prompt:
    for name in REQUIRED_COLUMNS:
        if row[name] is _UNREADABLE:
            raise ValueError(f"unreadable {name}")
    for name in ("qid", "question", "answer"):
        if not _text(row[name]):
            raise ValueError(f"missing {name}")
    for name in ("question", "answer"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name} isn't text but {type(row[name]).__name__}")
    paths = row["image"] or []
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError("image isn't a list of paths")
    return Prompt(
        prompt_id=_text(row["qid"]),
        question=row["question"],
        image_paths=tuple(images.resolve(path) for path in paths),
        answer=unboxed(row["answer"]),
        category=_text(row["category"]),
        source=_text(row["source"]),
    )

"""The usable prompts of a data set that a selection keeps.

Owns what makes a row usable and which rows are kept. Must not know tokenizers, images' pixels or engines, nor how files are stored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from algorithms.types import Prompt
from conf.schema import DataConfig, ImageSelection
from tasks.errors import DataError
from tasks.image_store import ImageStore
from tasks.layouts import LayoutName, choose_layout, group_of, lookup, pass_rate_of, read_fields, reader_rows, row_id_of
from tasks.plugins import load_function
from tasks.storage import find_storage


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A selected row that can't be a prompt."""

    row_id: str  # its id, or "row N" when it has none
    reason: str


class PromptDataset(Sequence[Prompt]):
    """The usable prompts of a data set that a selection keeps, in the files' order.

    A row that can't be used is no error here but an entry of ``bad_rows``; how many of them are too many is the run's decision.
    """

    def __init__(self, path: str | os.PathLike[str], selection: DataConfig | None = None, *, may_be_empty: bool = False) -> None:
        """Read the data.

        Args:
            path: a folder or file in a layout that tasks.layouts knows; with selection.reader, whatever the reader makes of it.
            selection: format, reader, scorer, image_cache and what to keep; None keeps every row.
            may_be_empty: a data set without a usable row is one, too, for whoever wants to see its bad rows.

        Raises:
            DataError: when there is no data at the path, in no known layout or not readable, or the selection keeps no usable row.
        """
        selection = selection or DataConfig()
        self.path = os.fspath(path)
        self.bad_rows: list[BadRow] = []
        self.num_rows = 0
        self.num_selected = 0  # rows that the selection keeps, bad ones included, duplicates not
        self.num_duplicates = 0
        self.row_numbers: list[int] = []  # of each prompt, in the files
        self._prompts: list[Prompt] = []
        if selection.scorer:
            load_function(selection.scorer)
        rows, self.layout, root = _open(self.path, selection)
        store = ImageStore(root, selection.image_cache)
        keep = _Selector(selection, self.layout)
        known: set[str] = set()
        seen = _Seen() if selection.deduplicate else None
        for number, row in enumerate(rows):
            self.num_rows += 1
            if not keep(row):
                continue
            try:
                prompt = _to_prompt(row, self.layout, number, store, selection.scorer)
                if prompt.prompt_id in known:
                    raise ValueError("another row has the same id")
            except ValueError as error:
                self.num_selected += 1
                self.bad_rows.append(BadRow(row_id=row_id_of(row, self.layout) or f"row {number}", reason=str(error)))
                continue
            if seen is not None and seen.before(prompt):
                self.num_duplicates += 1
                continue
            self.num_selected += 1
            known.add(prompt.prompt_id)
            self.row_numbers.append(number)
            self._prompts.append(prompt)
        if not self._prompts and not may_be_empty:
            first = f"; the first: {self.bad_rows[0].row_id}: {self.bad_rows[0].reason}" if self.bad_rows else ""
            counts = f"{self.num_rows} rows, {self.num_selected} kept by the selection, {len(self.bad_rows)} bad"
            raise DataError(f"{self.path}: no usable prompt: {counts}{first}")

    @classmethod
    def held_out(cls, data: DataConfig) -> PromptDataset:
        """Read the questions of an evaluation.

        Args:
            data: with a test_path. What makes training efficient (pass rates, deduplication) doesn't apply to what is measured.

        Returns:
            The questions.

        Raises:
            DataError: as the constructor.
        """
        return cls(data.test_path, replace(data, pass_rate_column="", min_pass_rate=None, max_pass_rate=None, deduplicate=False))

    def __len__(self) -> int:
        """Number of usable prompts."""
        return len(self._prompts)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        """The prompt at an index in [0, len), or a list for a slice."""
        return self._prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        """All prompts, in the files' order."""
        return iter(self._prompts)


class _Selector:
    """Whether a selection keeps a row; it looks at every row, bad ones included."""

    def __init__(self, selection: DataConfig, layout: LayoutName) -> None:
        self._selection = selection
        self._layout = layout
        self._has_column = False

    def __call__(self, row: Mapping[str, Any]) -> bool:
        selection = self._selection
        category, source, has_images = group_of(row, self._layout)
        if selection.categories and category not in selection.categories:
            return False
        if selection.sources and source not in selection.sources:
            return False
        if category in selection.exclude_categories or source in selection.exclude_sources:
            return False
        if selection.images is not ImageSelection.any and has_images != (selection.images is ImageSelection.only):
            return False
        if selection.max_question_chars is not None and _question_chars(row, self._layout) > selection.max_question_chars:
            return False
        return not selection.pass_rate_column or self._rated_well(row)

    def _rated_well(self, row: Mapping[str, Any]) -> bool:
        selection, column = self._selection, self._selection.pass_rate_column
        if not self._has_column:
            self._has_column = lookup(row, column) is not None or column in row
        rate = pass_rate_of(row, column)
        if rate is None:
            return selection.keep_unrated
        low, high = selection.min_pass_rate, selection.max_pass_rate
        return (low is None or rate >= low) and (high is None or rate <= high)


class _Seen:
    """Which questions came before: the same text, white space and case aside, about the same pictures."""

    def __init__(self) -> None:
        self._by_text: dict[bytes, list[tuple[str, ...]]] = {}
        self._hashes: dict[str, str] = {}

    def before(self, prompt: Prompt) -> bool:
        text = hashlib.sha256(" ".join(prompt.question.casefold().split()).encode(errors="surrogatepass")).digest()
        others = self._by_text.setdefault(text, [])
        # Pictures are read only where texts agree
        if any(len(paths) == len(prompt.image_paths) and self._same(paths, prompt.image_paths) for paths in others):
            return True
        others.append(prompt.image_paths)
        return False

    def _same(self, ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
        return all(a == b or self._hash(a) == self._hash(b) for a, b in zip(ours, theirs, strict=True))

    def _hash(self, path: str) -> str:
        if path not in self._hashes:
            with open(path, "rb") as file:
                self._hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[path]


def _open(path: str, selection: DataConfig) -> tuple[Iterator[dict[str, Any]], LayoutName, str]:
    """The rows, their layout and where relative paths start."""
    if selection.reader:
        return iter(reader_rows(selection.reader, path)), "plain", path or os.getcwd()
    storage = find_storage(path)
    layout = choose_layout(storage.columns, storage.kind, selection.format, where=str(storage.files[0]))
    column = selection.pass_rate_column.partition(".")[0]
    if column and column not in storage.columns:
        raise DataError(f"data.pass_rate_column = {selection.pass_rate_column!r}: {storage.files[0]} has {', '.join(storage.columns)}")
    return storage.rows(), layout, str(storage.root)


def _question_chars(row: Mapping[str, Any], layout: LayoutName) -> int:
    question = row.get("prompt") if layout == "verl" else row.get("question") or row.get("problem")
    if isinstance(question, list):
        return sum(len(str(message.get("content") or "")) for message in question if isinstance(message, Mapping))
    return len(question) if isinstance(question, str) else 0


def _to_prompt(row: Mapping[str, Any], layout: LayoutName, number: int, store: ImageStore, scorer: str) -> Prompt:
    fields = read_fields(row, layout, scorer=scorer)
    return Prompt(
        prompt_id=fields.row_id or f"row-{number}",
        question=fields.question,
        image_paths=tuple(store.resolve(image) for image in fields.images),
        answer=fields.answer,
        category=fields.category,
        source=fields.source,
        answer_type=fields.answer_type,
    )

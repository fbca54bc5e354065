"""What is in a data set and what is wrong with it: counts, lengths and bad rows, pictures decoded.

Owns the look at every row before a run. Must not know how it is printed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from algorithms.types import Prompt
from conf.schema import DataConfig
from tasks.dataset import BadRow, PromptDataset
from tasks.errors import BadPromptError
from tasks.images import load_image
from tasks.layouts import pass_rate_of
from tasks.markers import texts_between_images
from tasks.storage import find_storage

# A prompt's length, from the prompt and the (height, width) of its pictures; raises BadPromptError.
Measure = Callable[[Prompt, list[tuple[int, int]]], int]

_PASS_RATE = re.compile(r"pass_?rate", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """A data set in numbers; the counts are of usable prompts."""

    layout: str
    num_rows: int
    num_selected: int  # bad ones included
    num_duplicates: int  # left out
    prompts: tuple[Prompt, ...]
    categories: Mapping[str, int]
    sources: Mapping[str, int]
    images_per_prompt: Mapping[int, int]
    lengths: tuple[int, ...]  # increasing, as measured
    pass_rates: Mapping[str, Mapping[str, int]]  # by column, of all rows: missing, 0, between, 1
    bad_rows: tuple[BadRow, ...]

    @property
    def bad_fraction(self) -> float:
        """Of the selected rows."""
        return len(self.bad_rows) / max(self.num_selected, 1)


def check_data(path: str, selection: DataConfig, *, measure: Measure, max_length: int | None, max_images: int) -> DataReport:
    """Read a data set whole, its pictures included.

    Args:
        path: of the data.
        selection: which rows.
        measure: of a prompt's length.
        max_length: longer prompts are bad rows; None: no limit.
        max_images: prompts with more are bad rows.

    Returns:
        What was found; bad rows are part of it, not an error.

    Raises:
        DataError: when there is no data, or in no known layout.
    """
    dataset = PromptDataset(path, selection, may_be_empty=True)

    def look(prompt: Prompt) -> int | str:
        try:
            if len(prompt.image_paths) > max_images:
                return f"{len(prompt.image_paths)} images, over model.max_images_per_prompt={max_images}"
            texts_between_images(prompt)
            length = measure(prompt, [load_image(path).size for path in prompt.image_paths])
        except BadPromptError as error:
            return str(error)
        return length if max_length is None or length <= max_length else f"prompt of {length} tokens is over max_prompt_tokens={max_length}"

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoders let other threads run
        found = list(zip(dataset, threads.map(look, dataset), strict=True))
    good = [(prompt, length) for prompt, length in found if isinstance(length, int)]
    bad = [BadRow(row_id=prompt.prompt_id, reason=reason) for prompt, reason in found if isinstance(reason, str)]
    return DataReport(
        layout=dataset.layout,
        num_rows=dataset.num_rows,
        num_selected=dataset.num_selected,
        num_duplicates=dataset.num_duplicates,
        prompts=tuple(prompt for prompt, _ in good),
        categories=Counter(prompt.category for prompt, _ in good),
        sources=Counter(prompt.source for prompt, _ in good),
        images_per_prompt=Counter(len(prompt.image_paths) for prompt, _ in good),
        lengths=tuple(sorted(length for _, length in good)),
        pass_rates={} if selection.reader else _pass_rates(path),
        bad_rows=(*dataset.bad_rows, *bad),
    )


def characters(prompt: Prompt, image_sizes: list[tuple[int, int]]) -> int:
    """Measure a prompt where there is no tokenizer.

    Args:
        prompt: with its question.
        image_sizes: not looked at.

    Returns:
        Characters of the question.
    """
    return len(prompt.question)


def _pass_rates(path: str) -> dict[str, dict[str, int]]:
    storage = find_storage(path)
    columns = [name for name in storage.columns if _PASS_RATE.search(name)]
    counts = {name: dict.fromkeys(("missing", "0", "between", "1"), 0) for name in columns}
    for row in storage.rows(columns) if columns else ():
        for name in columns:
            rate = pass_rate_of(row, name)
            counts[name]["missing" if rate is None else "0" if rate == 0 else "1" if rate == 1 else "between"] += 1
    return counts

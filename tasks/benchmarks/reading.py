"""From a benchmark's folder to its questions, and later to the pictures of those that are asked.

Owns files and columns. Rows are read a few at a time, so that a benchmark larger than the memory can be
asked; must not know what a question means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.benchmarks.questions import Benchmark, Question
from tasks.errors import DataError
from tasks.image_store import ImageStore

BATCH_ROWS = 8  # read at once; a row of MMMU-Pro may hold seven pictures of several megabytes


@dataclass(frozen=True, kw_only=True, slots=True)
class LocatedQuestion:
    """A question and the row it was read from."""

    question: Question
    file: str  # below the benchmark's folder
    row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkQuestions:
    """What a benchmark's folder holds."""

    questions: tuple[LocatedQuestion, ...]
    bad: tuple[tuple[str, str], ...]  # (row, reason) of rows that can't be asked


def read_questions(benchmark: Benchmark, folder: Path) -> BenchmarkQuestions:
    """Read all questions, without keeping a picture.

    Args:
        benchmark: whose.
        folder: a copy of its repository.

    Returns:
        The questions in the files' order, and the rows that are none.

    Raises:
        DataError: when a file or a column is missing, a file isn't readable, or no row is a question.
    """
    questions: list[LocatedQuestion] = []
    bad: list[tuple[str, str]] = []
    known: set[str] = set()
    for file in _files(benchmark, folder):
        for number, row in _rows(benchmark, folder, file):
            seen = {name: _has_content(value) if name in benchmark.image_columns else value for name, value in row.items()}
            try:
                question = benchmark.question(seen, file)
                if question.question_id in known:
                    raise ValueError(f"another row has the id {question.question_id}")
                missing = [name for name in question.images if not benchmark.media_folder and not seen.get(name)]
                if missing:
                    raise ValueError(f"there is no picture in {', '.join(missing)}")
            except (ValueError, KeyError, TypeError, AttributeError) as error:  # whatever an odd cell leads to is the row's own
                bad.append((f"{file}, row {number}", f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"))
                continue
            known.add(question.question_id)
            questions.append(LocatedQuestion(question=question, file=file, row=number))
    if not questions:
        first = f"; the first: {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise DataError(f"{folder}: no row of {benchmark.title} can be used, {len(bad)} are bad{first}")
    return BenchmarkQuestions(questions=tuple(questions), bad=tuple(bad))


def with_pictures(
    benchmark: Benchmark, folder: Path, wanted: Sequence[LocatedQuestion], cache: Path
) -> Iterator[tuple[LocatedQuestion, tuple[str, ...]]]:
    """Bring the pictures of questions into files, a few rows at a time.

    Args:
        benchmark: whose.
        folder: a copy of its repository.
        wanted: the questions to ask.
        cache: gets a file for each picture, named by its content.

    Yields:
        Each question with the paths of its pictures, in the order of its markers; files in order, rows in order.
    """
    if benchmark.media_folder:
        for located in wanted:
            yield located, tuple(str(folder / path) for path in located.question.images)
        return
    store = ImageStore(folder, cache)
    by_file: dict[str, dict[int, LocatedQuestion]] = {}
    for located in wanted:
        by_file.setdefault(located.file, {})[located.row] = located
    for file, rows in by_file.items():
        pictureless = all(not located.question.images for located in rows.values())
        numbered = ((number, {}) for number in sorted(rows)) if pictureless else _rows(benchmark, folder, file, pictures_only=True)
        for number, row in numbered:
            found = rows.pop(number, None)
            if found is not None:
                yield found, tuple(store.resolve(row[name]) for name in found.question.images)
            if not rows:
                break


def _files(benchmark: Benchmark, folder: Path) -> list[str]:
    """Paths below the folder, in order."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {benchmark.title} is a copy of the data set {benchmark.repository}")
    found: list[str] = []
    for pattern in benchmark.files:
        matches = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))
        if not matches:
            raise DataError(f"{folder}: no file {pattern}; {benchmark.title} is a copy of the data set {benchmark.repository}")
        found += matches
    return found


def _rows(benchmark: Benchmark, folder: Path, file: str, *, pictures_only: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers; pictures as they are stored, a struct of bytes and path."""
    path = folder / file
    try:
        with pq.ParquetFile(path) as parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in benchmark.columns if name not in names]
            if missing:
                raise DataError(f"{path}: missing columns {', '.join(missing)}; found {', '.join(names)}")
            texts = () if pictures_only else (*benchmark.columns, *benchmark.optional_columns)
            columns = [name for name in (*texts, *benchmark.image_columns) if name in names]
            number = 0
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _has_content(picture: Any) -> bool:
    return isinstance(picture, dict) and bool(picture.get("bytes"))

"""The folder of an evaluation: questions, answers and scores as Parquet, so that it can be gone on with and scored again.

Owns what lies where and that a part is there whole or not at all. Must not know models, Ray or how a score is found.

    settings.json                      what was asked of which model; another one is refused
    questions/<benchmark>.parquet      every question that was asked, with its gold answer
    answers/<benchmark>/<mode>/*.parquet   one row a question and token limit, written in parts as they arrive
    scores/<benchmark>.parquet         one row an answer and way of counting, written anew at each scoring
    report.json, report.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.run_folder import RunFolderError, write_atomically, write_json
from tasks.benchmarks.questions import Question

_FORMAT = 1
_QUESTIONS = pa.schema([("question_id", pa.string()), ("prompt", pa.string()), ("question", pa.string())])
_BAD_ROWS = b"bad_rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRow:
    """One answer to one question, or why there is none."""

    question_id: str
    token_limit: int  # of new tokens
    response: str  # what counts in the answer's mode: y1, or y1 + trigger + y2
    num_tokens: int
    finish_reason: str  # stop or length
    first_response: str | None = None  # y1, where the response went on; None: the response is y1
    extra_tokens: int = 0  # of num_tokens, those of the trigger and y2
    rethinks: bool = False  # y1 does, by itself
    passed_over: str = ""  # why a response did not go on although the mode asks for it
    problem: str = ""  # why the question couldn't be answered; then the rest is empty

    @property
    def is_final(self) -> bool:
        """A higher token limit would not change it: it ended by itself, and everything that was asked for had room."""
        return not self.problem and self.finish_reason == "stop" and self.passed_over != "no_room"


_TYPES = {"str": pa.string(), "str | None": pa.string(), "int": pa.int32(), "bool": pa.bool_()}
_ANSWERS = pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(AnswerRow)])


class EvaluationFolder:
    """Questions, answers and scores of one model under one set of settings.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.report_json = self.path / "report.json"
        self.report_markdown = self.path / "report.md"

    def open(self, settings: Mapping[str, Any], **told: Any) -> None:
        """Make the folder, or go on in it.

        Args:
            settings: JSON-able; what answers depend on.
            **told: JSON-able; kept for the report, and allowed to differ.

        Raises:
            RunFolderError: when it holds answers under other settings, or something else.
        """
        wanted = {"format": _FORMAT, **settings}
        if self.settings.exists():
            held = self.read_settings()
            for key in wanted:
                if held.get(key) != wanted[key]:
                    raise RunFolderError(
                        f"{self.path} holds answers with {key} = {held.get(key)!r}, this evaluation has {key} = {wanted[key]!r};"
                        " choose another folder with --output, or remove that one"
                    )
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise RunFolderError(f"{self.path} isn't empty and holds no evaluation; choose another folder with --output")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.settings, {**wanted, **told})

    def read_settings(self) -> dict[str, Any]:
        """What open() was given.

        Returns:
            The settings.

        Raises:
            RunFolderError: when the folder holds no evaluation.
        """
        try:
            settings = json.loads(self.settings.read_text())
        except FileNotFoundError as error:
            raise RunFolderError(f"{self.path} holds no evaluation, there is no settings.json in it") from error
        except ValueError as error:
            raise RunFolderError(f"{self.settings} is damaged: {error}") from error
        if not isinstance(settings, dict) or settings.get("format") != _FORMAT:
            raise RunFolderError(f"{self.settings} was written by another version of rethinker; this one reads format {_FORMAT}")
        return settings

    def keep_questions(self, benchmark: str, questions: Sequence[tuple[Question, str]], bad_rows: Sequence[tuple[str, str]]) -> None:
        """Write what is asked; more questions of the same benchmark may be added later, none may change.

        Args:
            benchmark: its name.
            questions: with the prompt of each.
            bad_rows: (row, reason) of rows that are no questions.

        Raises:
            RunFolderError: when a question was asked with another prompt or gold answer before.
        """
        path = self.path / "questions" / f"{benchmark}.parquet"
        rows = {question.question_id: (prompt, question.to_json()) for question, prompt in questions}
        if path.exists():
            for row in _read(path).to_pylist():
                asked = (row["prompt"], row["question"])
                if rows.setdefault(row["question_id"], asked) != asked:
                    raise RunFolderError(
                        f"{path} holds the question {row['question_id']} with another prompt or gold answer: the benchmark's files or its"
                        " reader were changed; choose another folder with --output"
                    )
        columns = [list(rows), [prompt for prompt, _ in rows.values()], [record for _, record in rows.values()]]
        table = pa.table(columns, schema=_QUESTIONS).replace_schema_metadata({_BAD_ROWS: json.dumps(list(bad_rows)).encode()})
        _write(path, table)

    def benchmarks(self) -> list[str]:
        """Names of the benchmarks that were asked, in order."""
        return sorted(path.stem for path in (self.path / "questions").glob("*.parquet"))

    def questions(self, benchmark: str) -> tuple[dict[str, Question], list[tuple[str, str]]]:
        """What was asked.

        Args:
            benchmark: its name.

        Returns:
            Questions by id, and (row, reason) of the rows that are none.

        Raises:
            RunFolderError: when the file is damaged.
        """
        path = self.path / "questions" / f"{benchmark}.parquet"
        table = _read(path)
        try:
            questions = [Question.from_json(text) for text in table.column("question").to_pylist()]
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path} holds a question that this version of rethinker can't read: {error!r}") from error
        bad = json.loads((table.schema.metadata or {}).get(_BAD_ROWS, b"[]"))
        return {question.question_id: question for question in questions}, [(row, reason) for row, reason in bad]

    def add_answers(self, benchmark: str, mode: str, rows: Sequence[AnswerRow]) -> None:
        """Write a part of the answers.

        Args:
            benchmark: its name.
            mode: none or forced.
            rows: any number.
        """
        if not rows:
            return
        folder = self._answers(benchmark, mode)
        number = len(list(folder.glob("part-*.parquet"))) if folder.exists() else 0
        while (path := folder / f"part-{number:05d}.parquet").exists():
            number += 1
        _write(path, pa.Table.from_pylist([asdict(row) for row in rows], schema=_ANSWERS))

    def modes(self, benchmark: str) -> list[str]:
        """Modes in which a benchmark was answered."""
        folder = self.path / "answers" / benchmark
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def answers(self, benchmark: str, mode: str) -> Iterator[AnswerRow]:
        """All answers, part by part.

        Args:
            benchmark: its name.
            mode: none or forced.

        Yields:
            One row a question and token limit.

        Raises:
            RunFolderError: when a part is damaged.
        """
        seen: set[tuple[str, int]] = set()
        for path in sorted(self._answers(benchmark, mode).glob("part-*.parquet")):
            for values in _read(path).to_pylist():
                row = AnswerRow(**values)
                if (row.question_id, row.token_limit) not in seen:
                    seen.add((row.question_id, row.token_limit))
                    yield row

    def write_scores(self, benchmark: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the scores of a benchmark.

        Args:
            benchmark: its name.
            rows: one an answer and way of counting.
        """
        _write(self.path / "scores" / f"{benchmark}.parquet", pa.Table.from_pylist(list(rows)))

    def write_report(self, report: Mapping[str, Any], markdown: str) -> None:
        """Replace the report.

        Args:
            report: JSON-able.
            markdown: the same for people.
        """
        write_json(self.report_json, dict(report))
        write_atomically(self.report_markdown, markdown)

    def _answers(self, benchmark: str, mode: str) -> Path:
        return self.path / "answers" / benchmark / mode


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RunFolderError(f"{path} can't be read: {error}") from error


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, writing)
    os.replace(writing, path)

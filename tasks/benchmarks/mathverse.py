"""MathVerse testmini (Zhang et al., arXiv 2403.14624): 788 problems in five versions that move the question into the picture."""

from __future__ import annotations

import re

from algorithms.types import AnswerType
from tasks.benchmarks.formats import optional_text, text_cell
from tasks.benchmarks.questions import AnswerForm, Benchmark, Question, Row, marked
from tasks.prompts import IMAGE_MARKER

_OPTION = re.compile(r"^\s*\(?([A-H])\s*[:.)]\s*(.*)$", re.MULTILINE)
_LETTER = re.compile(r"\(?([A-H])\)?\.?")
_VISION_ONLY = "According to the question shown in the image, please first conduct reasoning, and then answer the question and provide the"
_ENDINGS = {
    "multi-choice": " correct option letter, e.g., A, B, C, D, at the end.",
    "free-form": " final value, e.g., 1, 2.5, 300, at the end.",
}


def question(row: Row, file: str) -> Question:
    """Read one row.

    Args:
        row: as published.
        file: where it stands.

    Returns:
        The question; the prompt is the published column ``query_cot``.

    Raises:
        ValueError: when the row can't be used.
    """
    question_type = text_cell(row, "question_type")
    if question_type not in _ENDINGS:
        raise ValueError(f"question_type is {question_type!r}, expected one of {', '.join(_ENDINGS)}")
    asked = _VISION_ONLY + _ENDINGS[question_type]
    shown = optional_text(row, "question")
    options = _options(shown or optional_text(row, "question_for_eval"))
    answer_type, gold, unscorable = _answer(text_cell(row, "answer"), question_type, options)
    metadata = row["metadata"] or {}
    return Question(
        question_id=text_cell(row, "sample_index"),
        body=IMAGE_MARKER + (marked(shown) or "Answer the question shown in the image."),
        own_prompt=IMAGE_MARKER + marked(optional_text(row, "query_cot") or asked) if shown else IMAGE_MARKER + asked,
        images=("image",),
        answer_type=answer_type,
        gold=(gold,),
        form=AnswerForm.any,
        groups={
            "problem_version": (text_cell(row, "problem_version"),),
            "subject": (str(metadata.get("subject") or ""),),
            "subfield": (str(metadata.get("subfield") or ""),),
            "question_type": (question_type,),
        },
        unscorable=unscorable,
    )


def _options(text: str) -> tuple[str, ...]:
    """The options after "Choices:", when their letters run from A without a gap."""
    _, found, block = text.rpartition("Choices:")
    pairs = _OPTION.findall(block) if found else []
    in_order = [letter for letter, _ in pairs] == [chr(ord("A") + number) for number in range(len(pairs))]
    return tuple(option.strip() for _, option in pairs) if in_order else ()


def _answer(answer: str, question_type: str, options: tuple[str, ...]) -> tuple[AnswerType, str, str]:
    """Type, gold answer and why it can't be scored; some published golds of multiple choice are no letters."""
    answer = answer.strip()
    if question_type == "free-form":
        return AnswerType(), answer, ""
    match = _LETTER.fullmatch(answer)
    if match:
        letter = match.group(1)
        known = options if ord(letter) - ord("A") < len(options) else ()  # some options are in the picture, and only letters are known
        return AnswerType(kind="choice", options=known), letter, ""
    if answer in options:
        return AnswerType(kind="choice", options=options), chr(ord("A") + options.index(answer)), ""
    if "\n" in answer:
        return AnswerType(), answer, "the published answer of a multiple-choice question names several letters"
    return AnswerType(), answer, ""


BENCHMARK = Benchmark(
    name="mathverse",
    title="MathVerse testmini",
    repository="AI4Math/MathVerse",
    files=("testmini.parquet",),
    columns=("sample_index", "problem_version", "question", "answer", "question_type", "metadata", "query_cot"),
    optional_columns=("question_for_eval",),
    image_columns=("image",),
    question=question,
    breakdowns=("problem_version", "subject", "subfield", "question_type"),
)

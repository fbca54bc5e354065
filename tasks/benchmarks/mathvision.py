"""MATH-Vision test (Wang et al., arXiv 2402.14804): 3040 competition problems with one merged picture each."""

from __future__ import annotations

import re

from algorithms.types import AnswerType
from tasks.benchmarks.formats import choice_type, gold_letter, lettered, option_texts, text_cell
from tasks.benchmarks.questions import AnswerForm, Benchmark, Question, Row, marked
from tasks.extraction import unboxed
from tasks.prompts import IMAGE_MARKER

_MARKER = re.compile(r"<image(\d+)>")
_INSTRUCTION = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice question, only one letter'
    ' is allowed in the "\\boxed{}".'
)
_LETTERS = tuple("ABCDE")


def question(row: Row, file: str) -> Question:
    """Read one row.

    Args:
        row: as published.
        file: where it stands.

    Returns:
        The question; markers of several pictures become "[image 1]", since they are published as one.

    Raises:
        ValueError: when the row can't be used.
    """
    options = tuple(option.strip() for option in option_texts(row["options"]))
    answer = text_cell(row, "answer").replace("\x0c", "\\f").strip()  # one row's "\f" of "\frac" was published as a form feed
    if not options and answer in _LETTERS:
        options = _LETTERS  # two rows are published without their options
    lines = lettered(options, "({letter}) {text}") if options and options != _LETTERS else ""
    text = IMAGE_MARKER + _without_markers(text_cell(row, "question") + (f"\n{lines}" if lines else ""))
    level, subject = str(row["level"]), text_cell(row, "subject")
    return Question(
        question_id=text_cell(row, "id"),
        body=text,
        own_prompt=f"{IMAGE_MARKER}{_INSTRUCTION}\n{text.removeprefix(IMAGE_MARKER)}",
        images=("decoded_image",),
        answer_type=choice_type(options, _MARKER) if options else AnswerType(),
        gold=(gold_letter(answer, options) if options else _repaired(answer),),
        form=AnswerForm.boxed,
        groups={"level": (level,), "subject": (subject,), "subject and level": (f"{subject}, level {level}",)},
    )


def _without_markers(text: str) -> str:
    several = len(set(_MARKER.findall(text))) > 1
    return marked(_MARKER.sub(lambda found: f"[image {found.group(1)}]" if several else "", text)).strip()


def _repaired(answer: str) -> str:
    """A gold answer out of its dollars and its box."""
    return unboxed(answer.strip("$"))


BENCHMARK = Benchmark(
    name="mathvision",
    title="MATH-Vision test",
    repository="MathLLMs/MathVision",
    files=("data/test-*.parquet",),
    columns=("id", "question", "options", "answer", "level", "subject"),
    image_columns=("decoded_image",),
    question=question,
    breakdowns=("level", "subject", "subject and level"),
)

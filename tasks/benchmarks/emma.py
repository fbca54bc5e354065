"""EMMA (Hao et al., arXiv 2501.05444): 2788 questions of mathematics, physics, chemistry and coding that need the picture."""

from __future__ import annotations

import re

from algorithms.types import AnswerType
from tasks.benchmarks.formats import (
    choice_type,
    gold_letter,
    lettered,
    listed_golds,
    option_texts,
    optional_text,
    place_pictures,
    text_cell,
)
from tasks.benchmarks.questions import AnswerForm, Benchmark, Question, Row

_IMAGE_COLUMNS = tuple(f"image_{number}" for number in range(1, 6))
_MARKER = re.compile(r"<image_(\d+)>")
_LEFTOVER = re.compile(r"<img_\d+>|<image\d+>")  # markers of pictures that aren't published
_STRATEGY = "Please solve the problem step by step."
_CHOICE = f'Answer with the option\'s letter from the given choices and put the letter in one "\\boxed{{}}". {_STRATEGY}'
_OPEN = f'Answer the question using a single word or phrase and put the answer in one "\\boxed{{}}". {_STRATEGY}'


def question(row: Row, file: str) -> Question:
    """Read one row.

    Args:
        row: as published.
        file: where it stands.

    Returns:
        The question.

    Raises:
        ValueError: when the row can't be used.
    """
    subject = text_cell(row, "subject")
    options = option_texts(row["options"])
    is_choice = text_cell(row, "type").casefold() == "multiple choice"
    context = optional_text(row, "context")
    lines = "\n" + lettered(options, "{letter}: {text}") if is_choice else ""
    text = (f"{context}\n" if context else "") + text_cell(row, "question").strip() + lines
    body, images = place_pictures(_LEFTOVER.sub("", text), _MARKER, row, column="image_{}")
    answer = text_cell(row, "answer").strip()
    task = optional_text(row, "task")
    return Question(
        question_id=text_cell(row, "pid"),
        body=body,
        own_prompt=f"{body}\n\n{_CHOICE}" if is_choice else f"{body}\n{_OPEN}",
        images=images,
        answer_type=choice_type(options, _MARKER, _LEFTOVER) if is_choice else AnswerType(),
        gold=(gold_letter(answer, options),) if is_choice else listed_golds(answer),
        form=AnswerForm.boxed,
        groups={
            "subject": (subject,),
            "type": ("multiple choice" if is_choice else "open-ended",),
            "category": tuple(f"{subject}: {name.strip()}" for name in optional_text(row, "category").split(";") if name.strip()),
            "task": (task,) if task else (),
        },
    )


BENCHMARK = Benchmark(
    name="emma",
    title="EMMA",
    repository="luckychao/EMMA",
    files=tuple(f"{subject}/test-*.parquet" for subject in ("Chemistry", "Coding", "Math", "Physics")),
    columns=("pid", "question", "options", "answer", "subject", "type"),
    optional_columns=("context", "category", "task"),
    image_columns=_IMAGE_COLUMNS,
    question=question,
    breakdowns=("subject", "type", "category", "task"),
)

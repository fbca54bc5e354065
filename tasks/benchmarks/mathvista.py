"""MathVista testmini (Lu et al., arXiv 2310.02255): 1000 questions, one picture each; the answer is an option's text or a number."""

from __future__ import annotations

from algorithms.types import AnswerType
from tasks.benchmarks.formats import lettered, option_texts, optional_text, text_cell
from tasks.benchmarks.questions import AnswerForm, Benchmark, Guess, Question, Row, marked
from tasks.prompts import IMAGE_MARKER

_GROUPS = ("language", "source", "category", "task", "context", "grade", "skills")  # of the column metadata


def question(row: Row, file: str) -> Question:
    """Read one row.

    Args:
        row: as published.
        file: where it stands.

    Returns:
        The question; the prompt is the published column ``query``.

    Raises:
        ValueError: when the row can't be used.
    """
    options = tuple(option.strip() for option in option_texts(row["choices"], "choices"))
    unit = optional_text(row, "unit")
    text = marked(text_cell(row, "question")) + (f" (Unit: {unit})" if unit else "")
    body = IMAGE_MARKER + text + ("\nChoices:\n" + marked(lettered(options, "({letter}) {text}")) if options else "")
    answer_type, gold = _answer(row, options)
    metadata = row["metadata"] or {}
    groups = {name: _values(metadata.get(name)) for name in _GROUPS}
    return Question(
        question_id=text_cell(row, "pid"),
        body=body,
        own_prompt=IMAGE_MARKER + marked(text_cell(row, "query")),
        images=("decoded_image",),
        answer_type=answer_type,
        gold=(gold,),
        guess=Guess.nearest,
        form=AnswerForm.any,
        groups={"question_type": _values(row["question_type"]), "answer_type": _values(row["answer_type"]), **groups},
    )


def _answer(row: Row, options: tuple[str, ...]) -> tuple[AnswerType, str]:
    answer = text_cell(row, "answer").strip()
    if row["question_type"] == "multi_choice":
        if answer not in options:
            raise ValueError(f"the gold answer {answer!r} is none of the choices")
        return AnswerType(kind="choice", options=options), chr(ord("A") + options.index(answer))
    decimals = int(row["precision"] or 0)  # published as a float, which round() refuses
    types = {
        "integer": AnswerType(kind="number"),
        "float": AnswerType(kind="number", decimals=decimals),
        "list": AnswerType(),
        "text": AnswerType(),
    }
    if row["answer_type"] not in types:
        raise ValueError(f"answer_type is {row['answer_type']!r}, expected one of {', '.join(types)}")
    return types[row["answer_type"]], answer


def _values(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(part) for part in value) if isinstance(value, list | tuple) else (str(value),)


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista testmini",
    repository="AI4Math/MathVista",
    files=("data/testmini-*.parquet",),
    columns=("pid", "question", "choices", "unit", "precision", "answer", "question_type", "answer_type", "metadata", "query"),
    image_columns=("decoded_image",),
    question=question,
    breakdowns=("question_type", "answer_type", *_GROUPS),
)

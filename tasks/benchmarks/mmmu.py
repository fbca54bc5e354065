"""MMMU validation (Yue et al., arXiv 2311.16502): 900 college questions of 30 subjects, pictures in the midst of text and options."""

from __future__ import annotations

import re

from algorithms.types import AnswerType
from tasks.benchmarks.formats import choice_type, gold_letter, lettered, listed_golds, option_texts, place_pictures, text_cell
from tasks.benchmarks.questions import AnswerForm, Benchmark, Guess, Question, Row

IMAGE_COLUMNS = tuple(f"image_{number}" for number in range(1, 8))
MARKER = re.compile(r"<image\s+(\d+)>")
CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."
OPEN_INSTRUCTION = "Answer the question using a single word or phrase."
DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power", "Materials",
        "Mechanical_Engineering",
    ),
}  # fmt: skip
_DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}


def domain_of(subject: str) -> str:
    """The domain that a subject belongs to.

    Args:
        subject: such as "Art_Theory", or with spaces.

    Returns:
        One of the six; "other" for a subject that MMMU hasn't.
    """
    return _DOMAIN_OF.get(subject.replace(" ", "_"), "other")


def question(row: Row, file: str) -> Question:
    """Read one row.

    Args:
        row: as published.
        file: where it stands, such as "Art/validation-00000-of-00001.parquet".

    Returns:
        The question.

    Raises:
        ValueError: when the row can't be used.
    """
    question_id = text_cell(row, "id")
    subject = "_".join(question_id.split("_")[1:-1])
    options = option_texts(row["options"])
    is_open = text_cell(row, "question_type") != "multiple-choice"
    answer = text_cell(row, "answer").strip()
    text = text_cell(row, "question").strip() + ("" if is_open else "\n" + lettered(options, "({letter}) {text}"))
    body, images = place_pictures(text, MARKER, row, column="image_{}")
    return Question(
        question_id=question_id,
        body=body,
        own_prompt=body + (f"\n{OPEN_INSTRUCTION}" if is_open else f"\n\n{CHOICE_INSTRUCTION}"),
        images=images,
        answer_type=AnswerType() if is_open else choice_type(options, MARKER),
        gold=listed_golds(answer) if is_open else (gold_letter(answer, options),),
        guess=Guess.random,
        form=AnswerForm.any,
        groups={
            "subject": (subject,),
            "domain": (domain_of(subject),),
            "question_type": ("open" if is_open else "multiple-choice",),
            "topic_difficulty": (str(row.get("topic_difficulty") or "unknown"),),
        },
    )


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU validation",
    repository="MMMU/MMMU",
    files=("*/validation-*.parquet",),
    columns=("id", "question", "options", "answer", "question_type"),
    optional_columns=("topic_difficulty",),
    image_columns=IMAGE_COLUMNS,
    question=question,
    breakdowns=("domain", "subject", "question_type"),
)

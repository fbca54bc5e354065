"""MMMU-Pro (Yue et al., arXiv 2409.02813): 1730 questions, once with up to ten options and once as a screenshot."""

from __future__ import annotations

from tasks.benchmarks.formats import choice_type, gold_letter, lettered, option_texts, place_pictures, text_cell
from tasks.benchmarks.mmmu import IMAGE_COLUMNS, MARKER, domain_of
from tasks.benchmarks.questions import Aggregation, AnswerForm, Benchmark, Guess, Question, Row
from tasks.prompts import IMAGE_MARKER

_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
    " Think step by step before answering."
)
_STANDARD = f"Answer the preceding multiple choice question. {_LAST_LINE}"
_VISION = f"Write out the multiple-choice question in the image and then solve it. {_LAST_LINE}"


def question(row: Row, file: str) -> Question:
    """Read one row.

    Args:
        row: as published.
        file: where it stands, such as "vision/test-00000-of-00004.parquet"; its folder is the setting.

    Returns:
        The question.

    Raises:
        ValueError: when the row can't be used.
    """
    setting = file.split("/")[0]
    options = option_texts(row["options"])
    subject = text_cell(row, "subject")
    if setting == "vision":
        images: tuple[str, ...] = ("image",)
        body, own_prompt = IMAGE_MARKER + "Answer the question shown in the image.", IMAGE_MARKER + _VISION
    else:
        text = text_cell(row, "question").strip() + "\n" + lettered(options, "{letter}. {text}")
        body, images = place_pictures(text, MARKER, row, column="image_{}")
        own_prompt = f"{body}\n\n{_STANDARD}"
    return Question(
        question_id=f"{setting}/{text_cell(row, 'id')}",
        body=body,
        own_prompt=own_prompt,
        images=images,
        answer_type=choice_type(options, MARKER),
        gold=(gold_letter(text_cell(row, "answer"), options),),
        guess=Guess.random,
        form=AnswerForm.line,
        stratum=setting,
        groups={
            "setting": (setting,),
            "domain": (domain_of(subject),),
            "subject": (subject,),
            "topic_difficulty": (str(row.get("topic_difficulty") or "unknown"),),
        },
    )


BENCHMARK = Benchmark(
    name="mmmu_pro",
    title="MMMU-Pro (mean of standard with 10 options and vision)",
    repository="MMMU/MMMU_Pro",
    files=("standard (10 options)/test-*.parquet", "vision/test-*.parquet"),
    columns=("id", "options", "answer", "subject"),
    optional_columns=("question", "topic_difficulty"),
    image_columns=("image", *IMAGE_COLUMNS),
    question=question,
    breakdowns=("setting", "domain", "subject", "topic_difficulty"),
    aggregation=Aggregation.macro,
)

"""The quickstart's questions with worked answers: shapes, handwritten digits, arithmetic in text.

Owns wording and answers. Must not know files or layouts: a question names its pictures by key.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
WAITS = ("Wait, let me check again.", "Wait, does it seem right?", "Wait, let's double check.")

_TWO_DIGITS = {
    "+": (
        "<image><image>What is the sum of the two digits?",
        "<image><image>Add the first digit to the second.",
        "<image><image>Read both digits and add them.",
        "What is <image> plus <image>?",
    ),
    "-": (
        "<image><image>What is the first digit minus the second?",
        "<image><image>Take the second digit from the first.",
        "<image><image>Read both digits and subtract the second from the first.",
        "What is <image> minus <image>?",
    ),
    "*": (
        "<image><image>What is the product of the two digits?",
        "<image><image>Multiply the first digit by the second.",
        "<image><image>Read both digits and multiply them.",
        "What is <image> times <image>?",
    ),
}
_THREE_DIGITS = {
    "+": (
        "<image><image><image>What is the sum of the three digits?",
        "<image><image><image>Read all three digits and add them.",
        "What is <image> plus <image> plus <image>?",
    ),
}
_ARITHMETIC = ("What is {0}?", "Calculate {0}.", "Work out {0}.", "{0}=?")
_ARITHMETIC_OPERANDS = {"+": 20, "-": 20, "*": 10}  # the largest
_CLOSED_SHARE = 0.3  # of the questions about shapes; a guess is right half the time, which is little to learn from
_TEST_SHARE = 5  # one expression in five is kept for the test questions


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question with its pictures and worked answers.

    Example: ``Question(text="<image><image>Add the first digit to the second.", answer="8", image_keys=("digit-3", "digit-9"), ...)``.
    """

    text: str  # one "<image>" marker per picture
    answer: str  # without \boxed{}
    image_keys: tuple[str, ...]  # pictures, in the order of the markers; empty: text only
    category: str
    source: str
    worked: str  # short answer that ends in \boxed{answer}
    rethink: str  # a first attempt, a "Wait" and the answer again


def shape_answer(question: str, *, shape: str, color: str) -> str:
    """Answer one of easy-VQA's questions about a picture of one shape.

    Args:
        question: its text, in lower case.
        shape: of the picture, one of SHAPES.
        color: of the picture, one of COLORS.

    Returns:
        "yes", "no", a shape or a color.
    """
    if question.startswith("what"):
        return color if "color" in question else shape
    negated = re.search(r"\b(no|not)\b", question) is not None
    return "yes" if _mentions(question, shape=shape, color=color) != negated else "no"


def shape_questions(
    questions: Sequence[tuple[str, str, int]], *, pictures: Mapping[int, tuple[str, str]], split: Split, count: int, seed: int
) -> list[Question]:
    """Choose easy-VQA questions so that the picture is needed: most of them open, the others about something present or absent.

    Args:
        questions: (text, answer, picture number), as the package has them.
        pictures: (shape, color) by picture number.
        split: names the picture keys, "shape-{split}-{number}".
        count: how many to choose.
        seed: of the choice and of the rethinking turns.

    Returns:
        At most count questions, shuffled.
    """
    rng = random.Random(f"shapes/{split}/{seed}")
    kinds: dict[str, list[tuple[str, str, int]]] = {"open": [], "present": [], "absent": []}
    for text, answer, number in sorted(set(questions)):
        shape, color = pictures[number]
        kind = "open" if text.startswith("what") else "present" if _mentions(text, shape=shape, color=color) else "absent"
        kinds[kind].append((text, answer, number))
    closed = round(count * _CLOSED_SHARE / 2)
    shares = {"open": count - 2 * closed, "present": closed, "absent": closed}
    chosen = [row for kind, rows in kinds.items() for row in rng.sample(rows, min(shares[kind], len(rows)))]
    rng.shuffle(chosen)
    return [_shape_question(rng, row, pictures[row[2]], split) for row in chosen]


def digit_questions(labels: Mapping[int, int], *, count: int, seed: int, split: Split) -> list[Question]:
    """Make questions over pictures of handwritten digits.

    Args:
        labels: digit by picture number; only these pictures are used, under the keys "digit-{number}".
        count: how many to make.
        seed: of everything random.
        split: part of the random stream.

    Returns:
        count questions, about a third of them with three pictures.
    """
    rng = random.Random(f"digits/{split}/{seed}")
    numbers = sorted(labels)
    made = []
    for _ in range(count):
        templates, size = (_THREE_DIGITS, 3) if rng.random() < 0.3 else (_TWO_DIGITS, 2)
        operator = "+" if size == 3 else rng.choice("+-*")
        pictures = rng.sample(numbers, size)
        digits = [labels[number] for number in pictures]
        seen = f"The digits are {_listed(digits)}. "
        wrong = [(digit + rng.randint(1, 9)) % 10 if i == 0 else digit for i, digit in enumerate(digits)]
        rng.shuffle(wrong)
        first = f"The digits are {_listed(wrong)}. " + _calculation(wrong, operator)
        worked = seen + _calculation(digits, operator)
        made.append(
            Question(
                text=rng.choice(templates[operator]),
                answer=str(_value(digits, operator)),
                image_keys=tuple(f"digit-{number}" for number in pictures),
                category="digits",
                source="sklearn-digits",
                worked=worked,
                rethink=_rethink(rng, right=worked, wrong=first),
            )
        )
    return made


def arithmetic_questions(*, count: int, seed: int, split: Split) -> list[Question]:
    """Make arithmetic questions in text; an expression belongs to one split only, whatever the order of its operands.

    Args:
        count: how many to make, all of them different.
        seed: of everything random.
        split: which expressions may be used.

    Returns:
        count questions without pictures.

    Raises:
        ValueError: when there aren't so many.
    """
    rng = random.Random(f"arithmetic/{split}/{seed}")
    possible = [
        (template, operator, [a, b])
        for operator, largest in _ARITHMETIC_OPERANDS.items()
        for a, b in itertools.product(range(largest + 1), repeat=2)
        if _split_of([a, b], operator) == split
        for template in _ARITHMETIC
    ]
    made = []
    for template, operator, numbers in rng.sample(possible, count):
        wrong = [numbers[0] + rng.choice((-1, 1, 10)), *numbers[1:]]
        first = _calculation(numbers, operator, result=_value(wrong, operator))
        worked = _calculation(numbers, operator)
        made.append(
            Question(
                text=template.format(_expression(numbers, operator)),
                answer=str(_value(numbers, operator)),
                image_keys=(),
                category="arithmetic",
                source="arithmetic",
                worked=worked,
                rethink=_rethink(rng, right=worked, wrong=first),
            )
        )
    return made


def _shape_question(rng: random.Random, row: tuple[str, str, int], picture: tuple[str, str], split: Split) -> Question:
    text, answer, number = row
    shape, color = picture
    wrong = (rng.choice(SHAPES), rng.choice([other for other in COLORS if other != color]))

    def work(shape: str, color: str) -> str:
        return f"The picture shows a {color} {shape}. \\boxed{{{shape_answer(text, shape=shape, color=color)}}}"

    worked = f"The picture shows a {color} {shape}. \\boxed{{{answer}}}"
    return Question(
        text=f"<image>{text}",
        answer=answer,
        image_keys=(f"shape-{split}-{number}",),
        category="shapes",
        source="easy-vqa",
        worked=worked,
        rethink=_rethink(rng, right=worked, wrong=work(*wrong)),
    )


def _mentions(question: str, *, shape: str, color: str) -> bool:
    return any(re.search(rf"\b{word}\b", question) for word in (shape, color))


def _rethink(rng: random.Random, *, right: str, wrong: str) -> str:
    """A first attempt, right or wrong, with or without its box; then the right answer after a "Wait"."""
    first = rng.choice((right, wrong))
    if rng.random() < 0.5:
        first = first[: first.rindex(" \\boxed{")]
    return f"{first} {rng.choice(WAITS)} {right}"


def _listed(digits: Sequence[int]) -> str:
    return ", ".join(str(digit) for digit in digits[:-1]) + f" and {digits[-1]}"


def _expression(numbers: Sequence[int], operator: str) -> str:
    return operator.join(str(number) for number in numbers)


def _value(numbers: Sequence[int], operator: str) -> int:
    value = numbers[0]
    for number in numbers[1:]:
        value = value + number if operator == "+" else value - number if operator == "-" else value * number
    return value


def _calculation(numbers: Sequence[int], operator: str, result: int | None = None) -> str:
    value = _value(numbers, operator) if result is None else result
    return f"{_expression(numbers, operator)}={value}. \\boxed{{{value}}}"


def _split_of(numbers: Sequence[int], operator: str) -> Split:
    operands = list(numbers) if operator == "-" else sorted(numbers)
    return "test" if zlib.crc32(_expression(operands, operator).encode()) % _TEST_SHARE == 0 else "train"

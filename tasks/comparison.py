"""When a response's answer is right, by the type of the gold answer.

Owns the dispatch over answer types, in two halves: ``decide`` is safe anywhere, ``compare`` runs untrusted text through a computer
algebra system or a user's function and so belongs in a process that may be killed. Must not know processes or extraction.
"""

from __future__ import annotations

import json
import math
from typing import Literal

from algorithms.types import AnswerType
from tasks.choices import gold_index, index_in_text, letter_index, option_indices
from tasks.equivalence import equivalent, normalized, shortcut
from tasks.latex_grammar import use_fast_prediction
from tasks.numbers import last_quantity, read_quantity, same_number, same_quantity
from tasks.plugins import load_function

# Where an answer stood: in a \boxed{}, behind a mark ("Answer:"), or nowhere in particular, and the whole response has to be searched.
Form = Literal["boxed", "marked", "running"]


def check_answer(gold: str, answer_type: AnswerType) -> None:
    """Refuse a gold answer that its own type doesn't allow; for readers of data.

    Args:
        gold: without its box.
        answer_type: of the prompt.

    Raises:
        ValueError: with the reason.
    """
    if answer_type.kind == "choice":
        gold_index(normalized(gold), answer_type.options)
    elif answer_type.kind == "number" and not _computable(gold):
        raise ValueError(f"the answer {gold[:80]!r} is no number")
    elif answer_type.kind == "scored":
        if not answer_type.scorer:
            raise ValueError("a scored answer without a scorer")
        json.loads(answer_type.data or "null")


def decide(candidate: str, gold: str, answer_type: AnswerType, *, form: Form) -> float | None:
    """Score an answer where that is exact and takes neither algebra nor anybody's code.

    Args:
        candidate: of a response, normalized.
        gold: the answer to compare with, normalized.
        answer_type: of the prompt.
        form: where the candidate stood.

    Returns:
        1 or 0; None when only ``compare`` can tell.
    """
    if answer_type.kind == "choice":
        return _decide_choice(candidate, gold, answer_type, form=form)
    if answer_type.kind == "number":
        return _decide_number(candidate, gold, answer_type, form=form)
    if answer_type.kind == "scored":
        return None
    same = shortcut(candidate, gold)
    return None if same is None else float(same)


def compare(candidate: str, gold: str, answer_type: AnswerType, *, form: Form) -> float:
    """Score an answer that ``decide`` could not; may take for ever, or all memory, on hostile input.

    Args:
        candidate: of a response, normalized.
        gold: the answer to compare with, normalized.
        answer_type: of the prompt.
        form: where the candidate stood.

    Returns:
        In [0, 1].

    Raises:
        Exception: whatever the algebra system or the user's function raises; ScoreError for a score that is none.
    """
    if answer_type.kind == "scored":
        return _user_score(candidate, gold, answer_type)
    if answer_type.kind == "number":
        return float(_same_value(candidate, gold, answer_type))
    if answer_type.kind == "choice":
        gold = answer_type.options[gold_index(gold, answer_type.options)]
        return float(equivalent(candidate, normalized(gold), whole_response=False))
    return float(equivalent(candidate, gold, whole_response=form == "running"))


class ScoreError(ValueError):
    """A user's function returned something else than a number from 0 to 1."""


def _decide_choice(candidate: str, gold: str, answer_type: AnswerType, *, form: Form) -> float | None:
    options = answer_type.options
    try:
        right = gold_index(gold, options)
    except ValueError:
        return 0.0  # readers refuse such data; here nothing can be equal to it
    index = letter_index(candidate, len(options))
    if index is None and form == "running":
        index = index_in_text(candidate, options)
    if index is not None:
        return float(index == right)
    matches = option_indices(candidate, options)
    if matches:
        return float(right in matches)
    if form == "marked" and (index := index_in_text(candidate, options)) is not None:
        return float(index == right)
    # Two ways to write one number or formula; of words the text decided.
    return None if options and form != "running" and _computable(candidate) and _computable(options[right]) else 0.0


def _decide_number(candidate: str, gold: str, answer_type: AnswerType, *, form: Form) -> float | None:
    wanted = read_quantity(gold)
    found = read_quantity(candidate)
    if found is None and form != "boxed":
        found = last_quantity(candidate)
    if wanted is None or found is None:
        return None if wanted is None or _computable(candidate) else 0.0
    if answer_type.unit:
        wanted = type(wanted)(value=wanted.value, unit=answer_type.unit)
    same = same_quantity(
        found,
        wanted,
        relative_tolerance=answer_type.relative_tolerance,
        absolute_tolerance=answer_type.absolute_tolerance,
        decimals=answer_type.decimals,
    )
    return float(same)


def _computable(text: str) -> bool:
    """Whether algebra could find a number in it."""
    return any(character.isdigit() or character == "\\" for character in text)


def _same_value(candidate: str, gold: str, answer_type: AnswerType) -> bool:
    r"""Compare numbers that have to be computed, such as \sqrt{2}/2 and 0.71."""
    values = []
    for text in (candidate, gold):
        quantity = read_quantity(text)
        value = quantity.value if quantity else _computed(text)
        if value is None:
            return equivalent(candidate, gold, whole_response=False)
        values.append(value)
    return same_number(values[0], values[1], answer_type.relative_tolerance, answer_type.absolute_tolerance, answer_type.decimals)


def _computed(text: str) -> float | None:
    from math_verify import parse

    use_fast_prediction()
    for parsed in parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True):
        number = getattr(parsed, "rhs", parsed)  # of "x = 5"
        if getattr(number, "is_number", False) and getattr(number, "is_real", False):
            value = float(number.evalf())
            return value if math.isfinite(value) else None
    return None


def _user_score(candidate: str, gold: str, answer_type: AnswerType) -> float:
    score = load_function(answer_type.scorer)(candidate, gold, json.loads(answer_type.data or "null"))
    try:
        value = float(score)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"{answer_type.scorer} returned {score!r}") from error
    if not 0.0 <= value <= 1.0:
        raise ScoreError(f"{answer_type.scorer} returned {value!r}")
    return value

"""What the benchmarks' rows have in common: markers of pictures, options, texts that hold Python literals.

Owns turning published cells into plain values. Must not know any one benchmark. Cells are data: nothing is evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

from algorithms.types import AnswerType
from tasks.benchmarks.questions import Row, marked
from tasks.prompts import IMAGE_MARKER


def text_cell(row: Row, column: str) -> str:
    """A text that must be there.

    Args:
        row: as published.
        column: of it.

    Returns:
        The text, as it is.

    Raises:
        ValueError: when it is missing, empty or no text.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is {'empty' if value in (None, '') else repr(value)[:40]}, expected a text")
    return value


def optional_text(row: Row, column: str) -> str:
    """A text that may be missing.

    Args:
        row: as published.
        column: of it.

    Returns:
        The text without outer white space; empty when it is missing, or the word "None".
    """
    value = row.get(column)
    found = "" if value is None else str(value).strip()
    return "" if found == "None" else found


def literal(text: str, column: str) -> Any:
    """The value of a Python literal.

    Args:
        text: such as "['a', 'b']".
        column: for the message.

    Returns:
        The value.

    Raises:
        ValueError: when it is no literal.
    """
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{column} is no Python literal: {text[:60]!r}") from error


def option_texts(value: Any, column: str = "options") -> tuple[str, ...]:
    """The options of a question, from a list or from the text of one.

    Args:
        value: a list, the text of a list, or None.
        column: for the message.

    Returns:
        Texts; a list within the list is flattened.

    Raises:
        ValueError: when it is neither.
    """
    if isinstance(value, str):
        value = literal(value, column) if value.strip() else []
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{column} isn't a list: {repr(value)[:60]}")
    return tuple(_flat(value))


def lettered(options: Sequence[str], form: str) -> str:
    """Options as lines.

    Args:
        options: texts.
        form: such as "({letter}) {text}".

    Returns:
        One line each, joined by newlines.
    """
    return "\n".join(form.format(letter=chr(ord("A") + number), text=text) for number, text in enumerate(options))


def gold_letter(answer: str, options: Sequence[str]) -> str:
    """A gold letter that is one of the options.

    Args:
        answer: such as "B" or "b".
        options: of the question.

    Returns:
        The capital letter.

    Raises:
        ValueError: when it is none of them.
    """
    letter = answer.strip().strip("()").upper()
    if len(letter) != 1 or not "A" <= letter < chr(ord("A") + len(options)):
        raise ValueError(f"the gold answer {answer!r} is no letter of {len(options)} options")
    return letter


def choice_type(options: Sequence[str], *markers: re.Pattern[str]) -> AnswerType:
    """How answers to a multiple-choice question are compared.

    Args:
        options: texts.
        markers: an option with one of them is a picture, which no text can match.

    Returns:
        The type.
    """
    texts = ("" if any(marker.search(option) for marker in markers) else option for option in options)
    return AnswerType(kind="choice", options=tuple(texts))


def listed_golds(answer: str) -> tuple[str, ...]:
    """The gold answers of an open question.

    Args:
        answer: one answer, or the text of a list of them.

    Returns:
        Any of them is right.

    Raises:
        ValueError: for a list that is none.
    """
    return tuple(str(value) for value in literal(answer, "answer")) if answer.startswith("[") else (answer,)


def place_pictures(text: str, marker: re.Pattern[str], pictures: Row, *, column: str) -> tuple[str, tuple[str, ...]]:
    """Put an "<image>" marker wherever the text names a picture that the row has.

    Args:
        text: with the benchmark's own markers; group 1 of each is the picture's number.
        marker: the benchmark's pattern.
        pictures: the row.
        column: of a picture, with {} for the number.

    Returns:
        The text, and the pictures' columns in the order of the markers. Pictures that the text doesn't name come first; a
        marker of a picture that the row doesn't have is taken out.
    """
    pieces, columns, position = [], [], 0
    for found in marker.finditer(text):
        name = column.format(int(found.group(1)))
        pieces.append(marked(text[position : found.start()]))
        position = found.end()
        if pictures.get(name):
            pieces.append(IMAGE_MARKER)
            columns.append(name)
    pieces.append(marked(text[position:]))
    unnamed = [name for name in pictures if _is_numbered(name, column) and pictures[name] and name not in columns]
    unnamed.sort(key=lambda name: int(re.sub(r"\D", "", name)))
    return IMAGE_MARKER * len(unnamed) + "".join(pieces), (*unnamed, *columns)


def _is_numbered(name: str, column: str) -> bool:
    return re.fullmatch(re.escape(column).replace(r"\{\}", r"\d+"), name) is not None


def _flat(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield str(value)

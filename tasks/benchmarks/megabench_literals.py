"""Values that MEGA-Bench's answers write as Python or JSON literals. Texts are untrusted: nothing is evaluated but literals."""

from __future__ import annotations

import ast
import json
import math
from typing import Any

MAX_LITERAL_CHARS = 20000  # longer texts are no lists of answers


def value_of(text: str) -> Any:
    """What a text denotes.

    Args:
        text: a Python or JSON literal.

    Returns:
        Its value; the text itself when it is neither.
    """
    stripped = text.strip()
    if len(stripped) > MAX_LITERAL_CHARS:
        return stripped
    for read in (ast.literal_eval, json.loads):
        try:
            return read(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return stripped


def items_of(text: str) -> list[Any]:
    """A list from its text.

    Args:
        text: of a list, tuple, set or number, or words with commas.

    Returns:
        Its items; mutable ones are frozen.
    """
    value = value_of(text)
    if isinstance(value, str):
        inner = value[1:-1] if value[:1] + value[-1:] in ("[]", "()", "{}") else value
        return [part.strip() for part in inner.split(",")] if inner.strip() else []
    if isinstance(value, list | tuple | set | frozenset):
        return [_frozen(item) for item in value]
    return [_frozen(value)]


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(((str(key), _frozen(item)) for key, item in value.items()), key=repr))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return frozenset(value) if isinstance(value, set) else value


def mapping(text: str) -> dict[Any, Any]:
    """A dictionary from its text.

    Args:
        text: a literal.

    Returns:
        The dictionary.

    Raises:
        ValueError: when it is none.
    """
    value = value_of(text)
    if not isinstance(value, dict):
        raise ValueError("not a dictionary")
    return value


def numbers_of(text: str) -> list[float]:
    """Numbers from the text of a list.

    Args:
        text: of a list, or numbers with commas.

    Returns:
        At least one finite number.

    Raises:
        ValueError: when there is none, or something else among them.
    """
    values = [float(item) for item in items_of(text) if not isinstance(item, tuple)]
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("no finite numbers")
    return values


def casefolded(value: Any) -> Any:
    """A value of items_of whose texts don't tell case.

    Args:
        value: a text, a tuple, or anything else.

    Returns:
        The same with every text casefolded.
    """
    if isinstance(value, tuple):
        return tuple(casefolded(item) for item in value)
    return value.casefold() if isinstance(value, str) else value

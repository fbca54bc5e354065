"""Multiple-choice answers: by letter, or by the option's text.

Owns which option an answer means. Must not know processes. Everything here takes time linear in the answer's length.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

MAX_OPTIONS = len(string.ascii_uppercase)

_LETTER = re.compile(r"\(?\[?([A-Za-z])\]?\)?[.:]?|(?i:option|choice|answer)\s{0,4}:?\s{0,4}\(?([A-Za-z])\)?[.:]?")
_LETTER_WITH_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.:)])\s.*", re.DOTALL)
# Where running text names its choice, the most trusted form first. Of each form the last one counts, because responses conclude.
_IN_TEXT = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?i:answer|option|choice)(?:\s{1,4}is|\s{1,4}would\s{1,4}be)?\s{0,4}:?\s{0,4}[*$(\[]{0,4}([A-Z])(?![A-Za-z0-9'])",
        r"\(([A-Z])\)",
        r"(?<![A-Za-z0-9'])([A-Z])(?=[.:)]|\s*\Z)",
        r"(?<![A-Za-z0-9'])([B-HJ-Z])(?![A-Za-z0-9'])",  # neither the article nor the pronoun
    )
)
_DECORATION = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s{0,4}|\\[,;!() ]|[{}$*]")


def letter_index(answer: str, num_options: int, *, with_text: bool = True) -> int | None:
    """Read a choice letter.

    Args:
        answer: normalized, such as "B", "(b)", "Option B", or with_text "B. blue".
        num_options: letters past it are none; 0: all letters.
        with_text: also take a letter that the option's text follows.

    Returns:
        The option's index; None when the answer doesn't have the form of a choice.
    """
    match = _LETTER.fullmatch(answer) or (_LETTER_WITH_TEXT.fullmatch(answer) if with_text else None)
    if match is None:
        return None
    index = string.ascii_uppercase.index(next(group for group in match.groups() if group is not None).upper())
    return index if index < (num_options or MAX_OPTIONS) else None


def plain(text: str) -> str:
    r"""Reduce an option's text to what has to agree.

    Args:
        text: such as "\text{Red circle}." or "Red  circle".

    Returns:
        Lower case, without decoration, white space and a final full stop; "redcircle" here.
    """
    return "".join(_DECORATION.sub("", text).casefold().split()).rstrip(".")


def option_indices(answer: str, options: Sequence[str]) -> set[int]:
    """Find the options whose text an answer is.

    Args:
        answer: such as "blue".
        options: their texts.

    Returns:
        Indices, several where options repeat; none when no text agrees.
    """
    wanted = plain(answer)
    return {index for index, option in enumerate(options) if wanted and plain(option) == wanted}


def gold_index(gold: str, options: Sequence[str]) -> int:
    """Find the right option.

    Args:
        gold: its letter in either case, or its text.
        options: their texts; none at all: only a letter is possible.

    Returns:
        Its index.

    Raises:
        ValueError: when the gold answer is none of the options.
    """
    index = letter_index(gold.strip(), len(options), with_text=False)
    if index is not None:
        return index
    matches = option_indices(gold, options)
    if not matches:
        raise ValueError(f"the answer {gold[:80]!r} is none of the {len(options)} options")
    return min(matches)


def index_in_text(text: str, options: Sequence[str]) -> int | None:
    """Find the choice that running text ends up with.

    Args:
        text: at most a few thousand characters.
        options: their texts.

    Returns:
        The option's index; None when the text names none, or the texts of several.
    """
    count = len(options) or MAX_OPTIONS
    for pattern in _IN_TEXT:
        letters = [letter for letter in pattern.findall(text) if string.ascii_uppercase.index(letter) < count]
        if letters:
            return string.ascii_uppercase.index(letters[-1])
    words = f" {_words(text)} "
    named = {option for option in options if _words(option) and f" {_words(option)} " in words}
    return options.index(named.pop()) if len(named) == 1 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", _DECORATION.sub(" ", text).casefold()))

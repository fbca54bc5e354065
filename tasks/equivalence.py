"""When two answers are the same: exact shortcuts for the common forms, math-verify for everything else.

Owns the comparison. Must not know processes: `shortcut` is safe anywhere, `equivalent` runs untrusted LaTeX through a
computer algebra system and so belongs in a process that may be killed.
"""

from __future__ import annotations

import re
from decimal import Decimal

from tasks.latex_grammar import use_fast_prediction

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([A-Za-z0-9 .()+-]*)\}|\$([^$]*)\$|\\\((.*)\\\)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,6}(?:\.[0-9]{1,6})?|\.[0-9]{1,6})")  # within what math-verify's rounding can't change
_WORDS = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")
_CHOICE = re.compile(r"\(([A-Ha-h])\)[.:]?|([A-Ha-h])[.:)]?|(?i:option|choice) \(?([A-Ha-h])\)?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\(([A-H])\)|([A-H])[.:)])\s.*", re.DOTALL)
_CHOICES = tuple("ABCDEFGH")
# Words that math-verify reads as mathematics, and so are left to it.
_MATH_WORDS = frozenset({"and", "or", "inf", "infty", "infinity", "percent", "pi", "e", "i", "oo"})


def normalized(answer: str) -> str:
    r"""Take off what surrounds an answer without belonging to it.

    Args:
        answer: such as "$42$." or "\text{yes}".

    Returns:
        Without outer white space, a final full stop, dollar signs and text commands; "42" and "yes" here.
    """
    for _ in range(4):  # "$\text{yes}.$" needs three rounds; a bound keeps hostile nesting cheap
        answer = answer.strip()
        if answer.endswith(".") and len(answer) > 1:
            answer = answer[:-1].rstrip()
        match = _WRAPPED.fullmatch(answer)
        if match is None:
            break
        answer = next(group for group in match.groups() if group is not None)
    return answer


def choice_letter(answer: str, *, with_text: bool) -> str | None:
    """Read a multiple-choice letter.

    Args:
        answer: normalized, such as "B", "(b)", "B.", "Option B".
        with_text: also take the letter of "B. 5 cm" and "(B) blue".

    Returns:
        A capital letter from A to H; None when the answer doesn't have the form of a choice.
    """
    match = _CHOICE.fullmatch(answer) or (_CHOICE_WITH_TEXT.fullmatch(answer) if with_text else None)
    return None if match is None else next(group for group in match.groups() if group is not None).upper()


def shortcut(candidate: str, gold: str) -> bool | None:
    """Compare two normalized answers where that is exact and takes no algebra.

    Args:
        candidate: of a response.
        gold: the answer to compare with.

    Returns:
        Equal or not; None when only math-verify can tell.
    """
    if candidate == gold:
        return True
    gold_choice = choice_letter(gold, with_text=False)
    if gold_choice is not None:
        letter = choice_letter(candidate, with_text=True)
        return None if letter is None else letter == gold_choice
    kinds = (_kind(candidate), _kind(gold))
    if kinds == ("number", "number"):
        return Decimal(candidate) == Decimal(gold)
    if kinds == ("words", "words"):
        return candidate.replace(" ", "").casefold() == gold.replace(" ", "").casefold()
    if None not in kinds:
        return False  # a number and a word
    return None


def equivalent(candidate: str, gold: str, *, whole_response: bool) -> bool:
    """Compare two answers with math-verify; may take for ever, or all memory, on hostile input.

    Args:
        candidate: of a response, normalized.
        gold: the answer to compare with, normalized.
        whole_response: the candidate is running text in which the answer has to be found.

    Returns:
        Equal or not; an answer that can't be parsed is equal to nothing.

    Raises:
        Exception: whatever the algebra system raises, MemoryError among it.
    """
    from math_verify import StringExtractionConfig, parse, verify

    choice = choice_letter(gold, with_text=False)
    if choice is not None and whole_response:
        letters = parse(candidate, [StringExtractionConfig(strings=_CHOICES)], parsing_timeout=None)
        return bool(letters) and letters[-1].upper() == choice
    parsed = _parse(candidate, whole_response=whole_response)
    return bool(verify(_parse(gold, whole_response=False), parsed, timeout_seconds=None, raise_on_error=True))


def _parse(answer: str, *, whole_response: bool) -> list:
    from math_verify import parse

    use_fast_prediction()
    # Bare words would be read as products of one-letter variables: "no" would equal "on".
    text = f"\\text{{{answer}}}" if _WORDS.fullmatch(answer) and answer.lower() not in _MATH_WORDS else answer
    framed = text if whole_response and text == answer else f"\\boxed{{{text}}}"
    return parse(framed, parsing_timeout=None, raise_on_error=True)


def _kind(answer: str) -> str | None:
    if _NUMBER.fullmatch(answer):
        return "number"
    if _WORDS.fullmatch(answer) and len(answer) > 1 and _MATH_WORDS.isdisjoint(answer.lower().split(" ")):
        return "words"
    return None

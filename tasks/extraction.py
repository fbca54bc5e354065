"""Which part of a response is its answer.

Owns the two extraction modes. Must not know how answers are compared. Responses are untrusted: every function here
takes time linear in their length, whatever they hold.
"""

from __future__ import annotations

import re

WHOLE_RESPONSE_CHARS = 1000  # of a response without any form of answer only the end is looked at

# "\\boxed" counts also right after another backslash (models write it so), any other doubled backslash is a line break.
_BRACES = re.compile(r"\\boxed\s*\{|\\\\(?!boxed)|\\[{}]|[{}]")
_ANSWER_LINE = re.compile(r"answer\s{0,4}:", re.IGNORECASE)


def strict_answer(text: str) -> str | None:
    r"""Find the content of the last \boxed{} whose braces are balanced.

    Args:
        text: a response.

    Returns:
        The content without surrounding white space; None when there is no such box, or nothing in it.
    """
    spans, _ = _boxes(text)
    if not spans:
        return None
    start, end = max(spans)
    return text[start:end].strip() or None


def lenient_candidates(text: str) -> list[str]:
    r"""List what may be meant as the answer, the most trusted form first.

    Args:
        text: a response.

    Returns:
        The last \boxed{}, the first <answer>...</answer>, what follows the last "Answer:" on its line, the (end of the)
        whole response; forms that are missing or empty are left out. The first entry is the answer, the others are what
        a reader of the log may want to see.
    """
    candidates = [strict_answer(text), _tagged_answer(text), _answer_line(text), text[-WHOLE_RESPONSE_CHARS:].strip()]
    return [candidate for candidate in candidates if candidate]


def unboxed(answer: str) -> str:
    r"""Take a gold answer out of its box.

    Args:
        answer: such as "\boxed{42}"; one without a box is taken as it is.

    Returns:
        The content of the last box.

    Raises:
        ValueError: when the braces of a boxed answer aren't balanced, or nothing is in the box.
    """
    if not re.search(r"\\boxed\s*\{", answer):
        return answer.strip()
    spans, balanced = _boxes(answer)
    if not balanced or not spans:
        raise ValueError("unbalanced braces in the boxed answer")
    start, end = max(spans)
    content = answer[start:end].strip()
    if not content:
        raise ValueError("nothing in the boxed answer")
    return content


def _boxes(text: str) -> tuple[list[tuple[int, int]], bool]:
    """The [start, end) of every balanced box's content, and whether every brace has its partner."""
    spans: list[tuple[int, int]] = []
    opened: list[int | None] = []  # where a box's content starts; None for any other brace
    balanced = True
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            if not opened:
                balanced = False
                continue
            start = opened.pop()
            if start is not None:
                spans.append((start, match.start()))
        elif token == "{":
            opened.append(None)
        elif token.startswith("\\boxed"):
            opened.append(match.end())
    return spans, balanced and not opened


def _tagged_answer(text: str) -> str:
    _, found, rest = text.partition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return content.strip() if found and closed else ""


def _answer_line(text: str) -> str:
    end = None
    for match in _ANSWER_LINE.finditer(text):
        end = match.end()
    if end is None:
        return ""
    line = text[end:].lstrip(" \t*_").partition("\n")[0]
    return line.strip(" \t\r*_")

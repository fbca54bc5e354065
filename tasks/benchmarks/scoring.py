"""The score of one response to one question, by rules only.

Owns where an answer must stand to count as strict, what else counts as lenient, and the guesses of the benchmarks' own rules. Must
not know benchmarks by name, files or models. What two answers have in common is the grader pool's business.
"""

from __future__ import annotations

import random
import re
from difflib import SequenceMatcher

from algorithms.types import AnswerType
from tasks.benchmarks.megabench_scoring import score_fields
from tasks.benchmarks.questions import AnswerForm, Guess, Question, Score
from tasks.choices import index_in_text, letter_index, option_indices
from tasks.equivalence import normalized
from tasks.extraction import lenient_candidates, strict_answer
from tasks.grading import GraderPool
from tasks.numbers import read_quantity

OPEN_DECIMALS = 2  # numbers of open questions are compared at two places, as MATH-Vision, MMMU and EMMA do
MAX_BARE_ANSWER_CHARS = 60  # a longer response is no bare answer
MAX_GOLD_WORDS = 8  # a longer gold answer is a sentence, which no rule can compare
_SEARCHED_CHARS = 4000  # of a long response the end is searched for a choice
_ANSWER_LINE = re.compile(r"answer\s{0,4}\**\s{0,4}:\s{0,4}", re.IGNORECASE)
_LABEL = re.compile(r"^[A-Za-z][\w\s]{0,40}(?:=|\\approx|≈|:)\s*|^=\s*")
_COMMAND = re.compile(r"\\(?:mathrm|text|mathbf|textbf|operatorname)\s*\{\s*([^{}]*)\}")
_DEGREE = re.compile(r"\^?\s*\{?\\circ\}?|\u6389|\u00b0")  # the second one is a degree sign that was published in a wrong encoding
# A unit at the end, after a number or a bracket: words, "cm^{2}", or as MATH-Vision writes them, "{squareinches}".
_UNIT = re.compile(
    r"(?<=[\d\s})])\s*(?:(?:(?:square|cubic|sq)\s)?(?:units?|degrees?|inch(?:es)?|f(?:oo|ee)t|met(?:er|re)s?|[mckd]?m|in|ft)"
    r"(?:\s?\^\s?\{?[23]\}?)?|\{[a-z]{4,}\})\s*$",
    re.IGNORECASE,
)


async def score_answer(question: Question, response: str, grader: GraderPool, *, form: AnswerForm, guess: bool, seed: int = 0) -> Score:
    """Score one response.

    Args:
        question: what was asked.
        response: what the model wrote.
        grader: compares answers in processes of its own.
        form: where the prompt asked the answer to stand.
        guess: also compute the official score, which guesses where no answer was found.
        seed: of a random guess, together with the question's id.

    Returns:
        The score; not_scored where no rule can judge any answer to this question.

    Raises:
        RuntimeError: when the grader pool is closed.
    """
    if question.unscorable:
        return Score(strict=None, lenient=None, method="none", not_scored=question.unscorable)
    if question.rules:

        async def equal(answer: str, gold: str) -> bool:
            return await _grade(answer, (gold,), AnswerType(), grader)

        return await score_fields(question, response, equal)
    if question.answer_type.kind == "free" and all(len(gold.split()) > MAX_GOLD_WORDS for gold in question.gold):
        return Score(strict=None, lenient=None, method="none", not_scored="the gold answer is a sentence, which needs a judge")
    if question.answer_type.kind == "choice":
        return await _score_choice(question, response, grader, form=form, guess=guess, seed=seed)
    return await _score_value(question, response, grader, form=form)


async def _score_choice(question: Question, response: str, grader: GraderPool, *, form: AnswerForm, guess: bool, seed: int) -> Score:
    options = question.answer_type.options
    right = ord(question.gold[0]) - ord("A")
    formal = formal_answer(response, form)
    strict = formal is not None and await _is_choice(formal, question, grader)
    method, candidate = _lenient_candidate(response)
    chosen = _chosen(candidate, options, running=method == "whole")
    if method != "whole" and chosen is None and not options:
        chosen = _chosen(response[-_SEARCHED_CHARS:], options, running=True)
    lenient = strict or chosen == right
    if chosen is None and not strict and method != "whole" and candidate != formal:
        lenient = await _is_choice(candidate, question, grader)
    if chosen is not None and options and not lenient:
        lenient = options[chosen] != "" and options[chosen].strip() == options[right].strip()  # some questions repeat an option
    found = chosen is not None or lenient or method != "whole"
    official = None
    if guess and question.guess is not Guess.none:
        official = float(lenient) if chosen is not None or lenient else float(_guessed(question, candidate, seed) == right)
    shown = chr(ord("A") + chosen) if chosen is not None else candidate[:200] if found else ""
    return Score(strict=float(strict), lenient=float(lenient), method=method if found else "none", answer=shown, official=official)


async def _score_value(question: Question, response: str, grader: GraderPool, *, form: AnswerForm) -> Score:
    formal = formal_answer(response, form)
    strict = formal is not None and await _grade(formal, question.gold, question.answer_type, grader)
    method, candidate = _lenient_candidate(response)
    lenient = strict
    if not lenient and candidate and (candidate != formal or method == "whole"):
        lenient = await _grade(candidate, question.gold, question.answer_type, grader, running=method == "whole")
    return Score(strict=float(strict), lenient=float(lenient), method=method if candidate else "none", answer=candidate[:200])


def formal_answer(response: str, form: AnswerForm) -> str | None:
    """The answer where the prompt asked it to stand.

    Args:
        response: what the model wrote.
        form: what the prompt asked for.

    Returns:
        The answer's text; None when nothing stands there.
    """
    if form is AnswerForm.boxed:
        return strict_answer(response)
    line = answer_line(response)
    if form is AnswerForm.line:
        return line
    bare = response.strip()
    is_bare = "\n" not in bare and 0 < len(bare) <= MAX_BARE_ANSWER_CHARS
    return strict_answer(response) or line or (bare if is_bare else None)


def answer_line(response: str) -> str | None:
    """What stands behind the last "Answer:" on its line.

    Args:
        response: what the model wrote.

    Returns:
        The text without markdown, a box around it taken off; None when there is none.
    """
    end = None
    for match in _ANSWER_LINE.finditer(response):
        end = match.end()
    if end is None:
        return None
    line = response[end:].partition("\n")[0].strip(" \t\r*_")
    return strict_answer(line) or line or None


def _lenient_candidate(response: str) -> tuple[str, str]:
    """Which form the answer has, and its text: a box, a tag or answer line, else the end of the whole response."""
    boxed = strict_answer(response)
    if boxed is not None:
        return "box", boxed
    candidates = lenient_candidates(response)
    if len(candidates) > 1:
        return "line", candidates[0]
    return "whole", candidates[0] if candidates else ""


def _chosen(candidate: str, options: tuple[str, ...], *, running: bool) -> int | None:
    """The option that a text means, by letter or by the option's text."""
    plain = normalized(candidate)
    index = letter_index(plain, len(options))
    if index is None and not running:
        index = min(option_indices(plain, options), default=None)
    return index_in_text(candidate, options) if index is None else index


async def _is_choice(candidate: str, question: Question, grader: GraderPool) -> bool:
    return await _grade(candidate, question.gold, question.answer_type, grader)


async def _grade(candidate: str, golds: tuple[str, ...], answer_type: AnswerType, grader: GraderPool, *, running: bool = False) -> bool:
    """Whether a text is any of the gold answers, as it stands or without labels, units and degree signs."""
    for gold in golds:
        if "".join(candidate.split()).casefold() == "".join(gold.split()).casefold():
            return True
        for text, wanted, how in _comparisons(candidate, gold, answer_type, running=running):
            grade = await grader.grade(text if running else f"\\boxed{{{text}}}", wanted, how)
            if grade.lenient:
                return True
    return False


def _comparisons(candidate: str, gold: str, answer_type: AnswerType, *, running: bool) -> list[tuple[str, str, AnswerType]]:
    """In which forms an answer is compared with the gold answer; any of them will do."""
    as_they_are = (candidate, gold, answer_type)
    if answer_type.kind != "free":
        return [as_they_are]
    number = AnswerType(kind="number", decimals=OPEN_DECIMALS)
    if read_quantity(gold) and read_quantity(candidate):  # units are compared then, not taken off
        return [(candidate, gold, number)]
    plain = _plain(gold)
    stripped = (candidate if running else _plain(candidate), plain, number if read_quantity(plain) else answer_type)
    return [as_they_are] if stripped == as_they_are else [as_they_are, stripped]


def _plain(text: str) -> str:
    r"""A free-form answer without what surrounds its value: "Area $=9 \pi \mathrm{cm}^{2}$" becomes "9 \pi"."""
    text = _COMMAND.sub(r"\1", text.replace("$", "")).strip()
    text = _LABEL.sub("", text)
    text = _UNIT.sub("", _DEGREE.sub("", text))
    return text.strip().rstrip(".").strip() or text


def _guessed(question: Question, candidate: str, seed: int) -> int:
    """What a benchmark's own rule takes when it found no answer."""
    options = question.answer_type.options
    if question.guess is Guess.nearest:
        return max(range(len(options)), key=lambda index: SequenceMatcher(None, candidate, options[index], autojunk=False).ratio())
    return random.Random(f"{seed}/{question.question_id}").randrange(len(options) or 4)

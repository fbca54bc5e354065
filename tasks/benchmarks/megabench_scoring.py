"""How MEGA-Bench reads a response and adds its fields up (the benchmark's repository, metrics/parsing and evaluation_processor.py).

Owns parsers and aggregation. Must not know processes: what needs algebra is asked of the comparison it is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tasks.benchmarks.megabench_literals import value_of
from tasks.benchmarks.megabench_metrics import METRICS, simplified
from tasks.benchmarks.questions import Question, Score
from tasks.extraction import strict_answer
from tasks.numbers import read_quantity

Equal = Callable[[str, str], Awaitable[bool]]
"""Whether an answer is mathematically equal to a gold answer."""

ALGEBRA = ("latex_expr_equality", "text_with_latex_expr_equality", "general_single_numerical_match", "boxed_single_numerical_match")
_PARSERS = ("answer_string", "json", "verbatim_answer_string", "dummy")
_ANSWER = re.compile(r"\**answer\s*:\s*\**", re.IGNORECASE)
_FENCE = re.compile(r"```\w*\n?(.*?)```", re.DOTALL)
_TEXT_AND_MATH = re.compile(r"\$([^$]*)\$")
_RELATIVE_TOLERANCE = 0.01


def missing_rule(rules: Mapping[str, Any]) -> str:
    """Why a question's answers can't be scored by rules.

    Args:
        rules: of the question.

    Returns:
        A reason that names the metric or parser; empty when they can.
    """
    for metric in (*rules["metrics"].values(), *rules["auxiliary"].values()):
        if metric not in METRICS and metric not in ALGEBRA:
            return f"metric {metric} has no rule"
    if rules["auxiliary"]:
        return f"auxiliary metric {next(iter(rules['auxiliary']))} has no rule"
    if rules["parser"] not in _PARSERS:
        return f"parser {rules['parser'] or '(none)'} has no rule"
    if not set(rules["gold"]) & set(rules["metrics"]):
        return "no field of the gold answer has a metric"
    if rules["aggregation"] not in ("mean", "min"):
        return f"aggregation {rules['aggregation']} has no rule"
    return ""


async def score_fields(question: Question, response: str, equal: Equal) -> Score:
    """Score one response.

    Args:
        question: of kind fields, with a rule for each metric.
        response: what the model wrote.
        equal: compares mathematics.

    Returns:
        strict: as the benchmark reads it; lenient: also an answer in a box where the response has no "Answer:", and JSON over several
        lines behind "Answer:", of which the benchmark reads the first line only.
    """
    strict = await _score(question.rules, response, equal)
    boxed = None if _ANSWER.search(response) else strict_answer(response)
    again = response if boxed is None else f"Answer: {boxed}"
    lenient = max(strict, await _score(question.rules, again, equal, whole_answer=True)) if strict < 1 else strict
    metrics = ", ".join(sorted(set(question.rules["metrics"].values())))
    return Score(strict=strict, lenient=lenient, method=metrics, answer=boxed or _after_answer(response)[:200])


async def _score(rules: Mapping[str, Any], response: str, equal: Equal, *, whole_answer: bool = False) -> float:
    answers = _fields(rules, response, whole_answer=whole_answer)
    scores: dict[str, float] = {}
    for field, gold in rules["gold"].items():
        metric = rules["metrics"].get(field)
        if metric is None:
            continue
        against = rules.get("context", "") if metric == "xml_norm_point_in_bbox" else gold
        scores[field] = await _metric(metric, answers.get(field, ""), against, equal)
    counted = {field: score for field, score in scores.items() if score >= 0}
    if not counted:
        return 0.0
    if rules["aggregation"] == "min":
        return min(counted.values())
    weights = {field: float(rules["weights"].get(field, 1.0)) for field in counted}
    total = sum(weights.values())
    return sum(weights[field] * score for field, score in counted.items()) / total if total else 0.0


async def _metric(name: str, answer: str, gold: str, equal: Equal) -> float:
    """One field; an answer that a metric can't read is wrong, as in the benchmark."""
    try:
        if name in ALGEBRA:
            return float(await _algebra(name, answer, gold, equal))
        return METRICS[name](answer, gold)
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, OverflowError, RecursionError):
        return 0.0


async def _algebra(name: str, answer: str, gold: str, equal: Equal) -> bool:
    if name == "text_with_latex_expr_equality":
        words = [simplified(_TEXT_AND_MATH.sub("", text)) for text in (answer, gold)]
        left, right = (_TEXT_AND_MATH.findall(text) for text in (answer, gold))
        if words[0] != words[1] or len(left) != len(right):
            return False
        return all([await equal(mine, theirs) for mine, theirs in zip(left, right, strict=True)])
    if name == "boxed_single_numerical_match":
        answer = strict_answer(answer) or answer
    if name.endswith("numerical_match"):
        found, wanted = read_quantity(answer), read_quantity(gold)
        if found is not None and wanted is not None:
            return abs(found.value - wanted.value) <= _RELATIVE_TOLERANCE * abs(wanted.value)
    return simplified(answer) == simplified(gold) or await equal(answer, gold)


def _fields(rules: Mapping[str, Any], response: str, *, whole_answer: bool) -> dict[str, str]:
    """The answer's text by field."""
    names = [name for name in rules["gold"] if not name.startswith("##")]
    parser = rules["parser"]
    if parser == "json":
        value = _json_answer(_after_answer(response) if whole_answer else response)
        if not isinstance(value, dict) or not value:
            return dict.fromkeys(rules["gold"], response)
        return {str(name): item if isinstance(item, str) else repr(item) for name, item in value.items()}
    if parser == "dummy":
        return dict.fromkeys(rules["gold"], response.strip())
    answer = _after_answer(response)
    if parser == "answer_string":
        fenced = _FENCE.search(answer)
        if fenced:
            answer = fenced.group(1).strip()
        elif all("\n" not in rules["gold"][name] for name in names):
            answer = answer.strip().split("\n\n")[0].strip()
        answer = _unquoted(answer)
    return dict.fromkeys(names, answer)


def _after_answer(response: str) -> str:
    """What follows the last "Answer:"; without one, the whole response."""
    ends = [found.end() for found in _ANSWER.finditer(response)]
    return response[max(ends, default=0) :].strip(" ")


def _json_answer(response: str) -> Any:
    """The last JSON value of the answer, which the benchmark looks for on the line of "Answer:" only, or in a fence."""
    line = re.findall(r"^\**Answer:\**(.*)$", response, re.MULTILINE)
    text = line[-1] if line else response
    fenced = re.findall(r"```json\s*(.*?)```", text, re.DOTALL)
    if fenced:
        text = fenced[-1]
    value = value_of(text)
    if not isinstance(value, str):
        return value
    start = text.find("{")
    if start < 0:
        return value
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0]
    except (ValueError, RecursionError):
        return value


def _unquoted(text: str) -> str:
    value = value_of(text) if text[:1] in "\"'" and text[:1] else text
    return value if isinstance(value, str) else text

"""From scored answers to what a person reads: accuracies with intervals, what was not scored and why, and the paper's columns.

Owns the arithmetic over questions and the report's form. Must not know files, models or Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algorithms.bootstrap import bootstrap_interval, stratified_mean
from algorithms.rethinking import transition
from cluster.evaluation_scoring import ScoredAnswer
from conf.loading import ConfigError
from tasks.benchmarks import BENCHMARKS
from tasks.benchmarks.paper import COLUMNS, RESULTS
from tasks.benchmarks.questions import Aggregation, Question

HELD_OUT = "held_out"  # the name of a run's own test questions
KINDS = ("strict", "lenient", "official")
MAX_REASONS = 12  # that the Markdown names; the JSON names all


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """How confidence intervals are made."""

    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """How a benchmark is added up and told."""

    name: str
    title: str
    breakdowns: tuple[str, ...]
    aggregation: Aggregation


def report_of(name: str) -> Reported:
    """How a benchmark is reported.

    Args:
        name: of a benchmark, or of the held-out questions.

    Returns:
        The form.

    Raises:
        ConfigError: for a name that is neither.
    """
    if name == HELD_OUT:
        return Reported(name=name, title="Held-out questions", breakdowns=("category", "source"), aggregation=Aggregation.micro)
    if name not in BENCHMARKS:
        raise ConfigError(f"evaluation.benchmarks: there is no benchmark '{name}', expected some of {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    return Reported(name=name, title=benchmark.title, breakdowns=benchmark.breakdowns, aggregation=benchmark.aggregation)


def benchmark_report(
    reported: Reported,
    questions: Mapping[str, Question],
    scored: Sequence[ScoredAnswer],
    bad_rows: Sequence[tuple[str, str]],
    intervals: Intervals,
) -> dict[str, Any]:
    """Add a benchmark's scores up.

    Args:
        reported: how.
        questions: all that were asked, by id.
        scored: their answers in every mode and at every token limit.
        bad_rows: (row, reason) of published rows that are no questions.
        intervals: of confidence.

    Returns:
        JSON-able; "results" has one entry a mode and token limit.
    """
    results = []
    for mode, limit in sorted({(found.mode, found.token_limit) for found in scored}, key=lambda key: (_MODES.index(key[0]), key[1])):
        answers = [found for found in scored if (found.mode, found.token_limit) == (mode, limit)]
        results.append({"mode": mode, "token_limit": limit, **_result(reported, questions, answers, intervals)})
    return {
        "benchmark": reported.name,
        "title": reported.title,
        "aggregation": reported.aggregation.value,
        "questions": len(questions),
        "bad_rows": [{"row": row, "reason": reason} for row, reason in bad_rows],
        "results": results,
    }


_MODES = ("none", "forced", "bound")


def _result(reported: Reported, questions: Mapping[str, Question], answers: Sequence[ScoredAnswer], intervals: Intervals) -> dict[str, Any]:
    counted = [found for found in answers if found.lenient is not None]
    breakdowns = {
        name: {
            value: _accuracies(members, questions, reported.aggregation, None)
            for value in sorted({value for found in answers for value in questions[found.question_id].groups.get(name, ())})
            if (members := [found for found in answers if value in questions[found.question_id].groups.get(name, ())])
        }
        for name in reported.breakdowns
    }
    return {
        "answers": len(answers),
        "missing": len(questions) - len(answers),
        "not_scored": dict(Counter(found.not_scored for found in answers if found.not_scored).most_common()),
        "truncated_fraction": _share(found.truncated for found in answers if not found.not_scored.startswith("not answered")),
        "response_tokens_mean": float(np.mean([found.num_tokens for found in answers])) if answers else 0.0,
        "no_answer_found": sum(found.method == "none" for found in counted),
        "decided_by": dict(Counter(found.method for found in counted).most_common()) if reported.name != "megabench" else {},
        **_accuracies(answers, questions, reported.aggregation, intervals),
        **_strata(answers, questions, reported.aggregation),
        **_rethinking(answers),
        "breakdowns": breakdowns,
    }


def _accuracies(
    answers: Sequence[ScoredAnswer], questions: Mapping[str, Question], aggregation: Aggregation, intervals: Intervals | None
) -> dict[str, Any]:
    """Accuracies over the answers that have a score; with intervals where they are asked for."""
    counted = [found for found in answers if found.lenient is not None]
    macro = aggregation is Aggregation.macro
    strata = [questions[found.question_id].stratum if macro else "" for found in counted]
    found: dict[str, Any] = {"scored": len(counted)}
    if macro:
        found["accuracy_lenient_micro"] = float(np.mean([answer.lenient for answer in counted])) if counted else 0.0
    for kind in KINDS:
        values = [getattr(answer, kind) for answer in counted]
        if kind == "official":
            if all(value is None for value in values):
                continue
            values = [answer.lenient if answer.official is None else answer.official for answer in counted]
        scores = np.array(values, dtype=np.float64)
        found[f"accuracy_{kind}"] = stratified_mean(scores, strata)
        if intervals is not None:
            bounds = bootstrap_interval(scores, strata, confidence=intervals.confidence, resamples=intervals.resamples, seed=intervals.seed)
            found[f"interval_{kind}"] = list(bounds)
    return found


def _strata(answers: Sequence[ScoredAnswer], questions: Mapping[str, Question], aggregation: Aggregation) -> dict[str, Any]:
    """Of a macro mean: how many strata count, and which have no scored answer at all."""
    if aggregation is Aggregation.micro:
        return {}
    every = {questions[found.question_id].stratum for found in answers}
    counted = {questions[found.question_id].stratum for found in answers if found.lenient is not None}
    return {"strata_scored": len(counted), "strata_not_scored": sorted(every - counted)}


def _rethinking(answers: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """How answers fare that rethink by themselves; and of those that were made to go on, what became of y1."""
    counted = [found for found in answers if found.lenient is not None]
    told: dict[str, Any] = {"rethinking_fraction": _share(found.rethinks for found in counted)}
    for name, members in (("rethinking", [f for f in counted if f.rethinks]), ("no_rethinking", [f for f in counted if not f.rethinks])):
        told[f"accuracy_lenient_{name}"] = float(np.mean([found.lenient for found in members])) if members else None
    forced = [found for found in counted if found.mode == "forced" and found.first_lenient is not None]
    if forced:
        cells = Counter(transition(before=found.first_lenient == 1.0, after=found.lenient == 1.0) for found in forced)
        told |= {
            "went_on": len(forced),
            "extra_tokens_mean": float(np.mean([found.extra_tokens for found in forced])),
            "y1_to_y2": dict(cells),
        }
    return told


def _share(flags: Any) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0


def markdown(report: Mapping[str, Any]) -> str:
    """Write a report for people.

    Args:
        report: "model", "settings", "intervals" and "benchmarks" (of benchmark_report).

    Returns:
        Markdown.
    """
    lines = ["# Evaluation", "", f"Model: `{report['model']}`", ""]
    lines += [f"- {name}: {value}" for name, value in report["settings"].items() if name != "format" and value is not None]
    confidence = f"{100 * report['intervals']['confidence']:g} %"
    lines += ["", "## Accuracy", "", f"Percent, with {confidence} bootstrap intervals over the questions that have a score.", ""]
    official = any("accuracy_official" in result for found in report["benchmarks"] for result in found["results"])
    kinds = KINDS if official else KINDS[:2]
    heads = ["benchmark", "mode", "token limit", *kinds, "truncated", "scored", "not scored"]
    lines += _table(heads, [row for found in report["benchmarks"] for row in _accuracy_rows(found, kinds)])
    lines += _paper_table(report)
    for found in report["benchmarks"]:
        lines += _details(found)
    return "\n".join(lines) + "\n"


def _accuracy_rows(found: Mapping[str, Any], kinds: Sequence[str]) -> list[list[str]]:
    rows = []
    for result in found["results"]:
        accuracies = [_with_interval(result, kind) for kind in kinds]
        unscored = result["answers"] - result["scored"] + result["missing"] + len(found["bad_rows"])
        counts = [_percent(result["truncated_fraction"]), str(result["scored"]), str(unscored)]
        rows.append([found["title"], result["mode"], str(result["token_limit"]), *accuracies, *counts])
    return rows


def _paper_table(report: Mapping[str, Any]) -> list[str]:
    """Our lenient accuracies in the paper's columns, above what the paper tells."""
    ours: dict[str, dict[str, float]] = {}
    for found in report["benchmarks"]:
        for result in found["results"] if found["benchmark"] in COLUMNS else ():
            row = ours.setdefault(f"this model, {result['mode']}, {result['token_limit']} tokens", {})
            row[found["benchmark"]] = 100 * result["accuracy_lenient"]
    if not ours:
        return []
    titles = [found["title"].split(" (")[0] for name in COLUMNS for found in report["benchmarks"] if found["benchmark"] == name]
    columns = [name for name in COLUMNS if any(name in row for row in ours.values())]
    rows = [[label, *(f"{row[name]:.1f}" if name in row else "" for name in columns)] for label, row in (ours | dict(RESULTS)).items()]
    note = "Lenient accuracy in percent. The paper's rows (arXiv 2504.08837): greedy, 2048 tokens, its own prompts and rule-based scores."
    return ["", "## Beside the paper", "", note, "", *_table(["", *titles], rows)]


def _details(found: Mapping[str, Any]) -> list[str]:
    """What could not be asked or scored, and the accuracies by the benchmark's own parts."""
    bad = Counter(row["reason"] for row in found["bad_rows"])
    lines = ["", f"## {found['title']}", "", f"{found['questions']} questions were asked, {_rows(len(found['bad_rows']))} could not be."]
    lines += ["", *(f"- {_rows(count)}: {reason}" for reason, count in bad.most_common(MAX_REASONS))]
    for result in found["results"]:
        name = f"{result['mode']}, {result['token_limit']} tokens"
        if result["missing"]:
            lines.append(f"- {name}: {result['missing']} questions have no answer yet")
        lines += [f"- {name}: {count} not scored: {reason}" for reason, count in list(result["not_scored"].items())[:MAX_REASONS]]
        if result.get("strata_not_scored"):
            names = ", ".join(result["strata_not_scored"][:MAX_REASONS])
            lines.append(f"- {name}: {result['strata_scored']} tasks count, {len(result['strata_not_scored'])} have no score: {names}")
        if "y1_to_y2" in result:
            cells = ", ".join(f"{cell.replace('_', ' ')} {count}" for cell, count in sorted(result["y1_to_y2"].items()))
            lines.append(f"- {name}: {result['went_on']} went on, with {result['extra_tokens_mean']:.0f} more tokens: {cells}")
        if result["no_answer_found"]:
            lines.append(f"- {name}: in {result['no_answer_found']} responses no answer was found; they count as wrong")
    for breakdown in found["results"][0]["breakdowns"] if found["results"] else ():
        lines += _breakdown(breakdown, found["results"])
    return lines


def _breakdown(name: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table of strict and lenient accuracies, a column a mode and token limit."""
    values = sorted({value for result in results for value in result["breakdowns"][name]})
    if len(values) < 2:
        return []
    rows = []
    for value in values:
        parts = [result["breakdowns"][name].get(value) for result in results]
        cells = [f"{_percent(p['accuracy_strict'])} / {_percent(p['accuracy_lenient'])}" if p and p["scored"] else "-" for p in parts]
        rows.append([value, str(max(part["scored"] for part in parts if part)), *cells])
    columns = [f"{result['mode']}, {result['token_limit']}: strict / lenient" for result in results]
    return ["", *_table([name, "scored", *columns], rows)]


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _with_interval(result: Mapping[str, Any], kind: str) -> str:
    if f"accuracy_{kind}" not in result or not result["scored"]:
        return "-"
    low, high = result[f"interval_{kind}"]
    return f"{_percent(result[f'accuracy_{kind}'])} [{_percent(low)}, {_percent(high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in cells)]

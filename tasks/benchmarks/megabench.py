"""MEGA-Bench core (Chen et al., arXiv 2410.10563): 6531 questions of 440 tasks, each with its own fields, metrics and parser.

The benchmark's number is the mean over tasks. Pictures are files of the unzipped data.zip.
"""

from __future__ import annotations

import posixpath
from typing import Any

from tasks.benchmarks.formats import literal, text_cell
from tasks.benchmarks.megabench_scoring import missing_rule
from tasks.benchmarks.questions import Aggregation, AnswerForm, Benchmark, Question, Row
from tasks.prompts import IMAGE_MARKER

_VIDEO_MARKER = "<video>"
_VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
_PARTS = (("task_description", "global_media"), ("example_text", "example_media"), ("query_text", "query_media"))


def question(row: Row, file: str) -> Question:
    """Read one row.

    Args:
        row: as published; every column is a text, several of them hold Python literals.
        file: where it stands.

    Returns:
        The question; its prompt is the description, the worked example and the query, each with its pictures.

    Raises:
        ValueError: when the row can't be used, a video among it.
    """
    texts, media = [], []
    for text_column, media_column in _PARTS:
        text = row[text_column] or ""
        paths = [_below(path) for path in _listed(row, media_column)]
        if _VIDEO_MARKER in text or any(path.lower().endswith(_VIDEO_ENDINGS) for path in paths):
            raise ValueError("asks about a video; only pictures are asked")
        if text.count(IMAGE_MARKER) != len(paths):
            raise ValueError(f"{text_column} has {text.count(IMAGE_MARKER)} {IMAGE_MARKER} markers for {len(paths)} pictures")
        texts.append(text)
        media += paths
    prompt = "\n".join(text for text in texts if text.strip())
    rules = _rules(row)
    task = text_cell(row, "task_name")
    return Question(
        question_id=text_cell(row, "id"),
        body=prompt,
        own_prompt=prompt,
        images=tuple(media),
        gold=(),
        form=AnswerForm.line,
        stratum=task,
        groups={
            "application": (str(row.get("application") or "unknown"),),
            "input_format": (str(row.get("input_format") or "unknown"),),
            "output_format": (str(row.get("output_format") or "unknown"),),
            "pictures": (_how_many(len(media)),),
        },
        rules=rules,
        unscorable=missing_rule(rules),
    )


def _rules(row: Row) -> dict[str, Any]:
    """Metrics, weights, parser and gold fields, as JSON holds them."""
    info = literal(text_cell(row, "metric_info"), "metric_info")
    gold = literal(text_cell(row, "answer"), "answer")
    if not isinstance(info, dict) or not isinstance(gold, dict):
        raise ValueError("metric_info and answer must be dictionaries")
    aggregation = info.get("aggregation") or {}
    metrics = dict(info.get("field_score_function") or {})
    rules = {
        "metrics": metrics,
        "auxiliary": dict(info.get("global_aux_metrics") or {}),
        "weights": dict(aggregation.get("field_weights") or {}),
        "aggregation": str(aggregation.get("function") or "mean"),
        "parser": str(info.get("response_parse_function") or ""),
        "gold": {str(name): value if isinstance(value, str) else repr(value) for name, value in gold.items()},
    }
    if "xml_norm_point_in_bbox" in metrics.values():  # the one metric with a rule here that looks at more than the answer
        rules["context"] = row["eval_context"] or ""
    return rules


def _listed(row: Row, column: str) -> list[str]:
    value = row[column]
    if value is None or value == "":
        return []
    paths = literal(value, column) if isinstance(value, str) else value
    if isinstance(paths, str):
        paths = [paths] if paths else []
    if not isinstance(paths, list | tuple):
        raise ValueError(f"{column} isn't a list of paths")
    return [str(path) for path in paths]


def _below(path: str) -> str:
    """A path within the benchmark's folder."""
    normal = posixpath.normpath(path)
    if posixpath.isabs(normal) or normal.startswith(".."):
        raise ValueError(f"picture path leaves the folder: {path!r}")
    return normal


def _how_many(number: int) -> str:
    for low, high in ((0, 0), (1, 1), (2, 3), (4, 5), (6, 8)):
        if low <= number <= high:
            return str(low) if low == high else f"{low}-{high}"
    return "9 or more"


BENCHMARK = Benchmark(
    name="megabench",
    title="MEGA-Bench core (mean over tasks)",
    repository="TIGER-Lab/MEGA-Bench",
    files=("core/test-*.parquet",),
    columns=(
        "id", "task_name", "task_description", "global_media", "example_text", "example_media", "query_text", "query_media", "answer",
        "metric_info", "eval_context",
    ),
    optional_columns=("application", "input_format", "output_format"),
    image_columns=(),
    media_folder=True,
    question=question,
    breakdowns=("application", "input_format", "output_format", "pictures"),
    aggregation=Aggregation.macro,
)  # fmt: skip

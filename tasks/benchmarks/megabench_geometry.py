"""MEGA-Bench's metrics over boxes and points, in normalised coordinates."""

from __future__ import annotations

import math
import re
from typing import Any

from tasks.benchmarks.megabench_literals import items_of, mapping, value_of

_BOX_TAG = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_POINT_TAG = re.compile(r"<point>(.*?)</point>", re.DOTALL)


def boxes_of(text: str) -> list[tuple[float, ...]]:
    """Boxes from the text of one box or a list of boxes.

    Args:
        text: a literal.

    Returns:
        Left, top, right, bottom of each; what is no box is left out.
    """
    value = value_of(text)
    if not isinstance(value, list | tuple):
        return []
    rows = [value] if len(value) == 4 and all(isinstance(side, int | float) for side in value) else value
    return [tuple(map(float, row)) for row in rows if isinstance(row, list | tuple) and len(row) == 4 and all(map(_is_number, row))]


def tagged_boxes_of(text: str) -> list[tuple[float, ...]]:
    """Boxes from <box>left, top, right, bottom</box>.

    Args:
        text: any.

    Returns:
        Left, top, right, bottom of each.

    Raises:
        ValueError: for a side that is no number.
    """
    rows = [tag.split(",") for tag in _BOX_TAG.findall(text)]
    return [tuple(float(side) for side in row) for row in rows if len(row) == 4]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes of left, top, right, bottom."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (first, second)]
    return common / (sum(areas) - common) if sum(areas) > common else 0.0


def mean_best_overlap(found: list[tuple[float, ...]], wanted: list[tuple[float, ...]]) -> float:
    """The mean over found boxes of the best overlap with a wanted one.

    Args:
        found: of the answer.
        wanted: of the gold answer.

    Returns:
        In [0, 1]; 0 when either is empty.
    """
    if not found or not wanted:
        return 0.0
    return sum(max(_overlap(box, target) for target in wanted) for box in found) / len(found)


def single_overlap(found: list[tuple[float, ...]], wanted: list[tuple[float, ...]]) -> float:
    """The overlap of the one box that was found.

    Args:
        found: of the answer.
        wanted: of the gold answer.

    Returns:
        In [0, 1]; 0 unless exactly one was found.
    """
    return _overlap(found[0], wanted[0]) if len(found) == 1 and wanted else 0.0


def paired_overlaps(answer: str, gold: str) -> float:
    """The mean overlap of boxes by position.

    Args:
        answer: text of a list of boxes.
        gold: the same.

    Returns:
        In [0, 1]; 0 when they differ in number.
    """
    found, wanted = boxes_of(answer), boxes_of(gold)
    if len(found) != len(wanted) or not wanted:
        return 0.0
    return sum(_overlap(left, right) for left, right in zip(found, wanted, strict=True)) / len(wanted)


def overlaps_by_key(answer: str, gold: str) -> float:
    """The mean over the keys of both dictionaries of their boxes' overlap.

    Args:
        answer: text of a dictionary of lists of boxes.
        gold: the same.

    Returns:
        In [0, 1].

    Raises:
        ValueError: when either is no dictionary.
    """
    found, wanted = mapping(answer), mapping(gold)
    keys = found.keys() | wanted.keys()
    common = found.keys() & wanted.keys()
    return sum(mean_best_overlap(boxes_of(str(found[key])), boxes_of(str(wanted[key]))) for key in common) / len(keys) if keys else 1.0


def _point(text: str) -> tuple[float, float]:
    tags = _POINT_TAG.findall(text)
    if len(tags) != 1:
        raise ValueError("not exactly one point")
    across, down = tags[0].split(",")
    return float(across), float(down)


def point_closeness(answer: str, gold: str) -> float:
    """1 minus the distance of two normalised points.

    Args:
        answer: with one <point>x, y</point>.
        gold: the same.

    Returns:
        In [0, 1].

    Raises:
        ValueError: when either isn't one point.
    """
    return max(0.0, 1.0 - math.dist(_point(answer), _point(gold)))


def point_in_any_box(answer: str, context: str) -> float:
    """Whether a point lies in one of the boxes.

    Args:
        answer: with one <point>x, y</point>.
        context: text of the boxes, or of a dictionary with "bboxes".

    Returns:
        0 or 1.

    Raises:
        ValueError: when the answer isn't one point.
    """
    across, down = _point(answer)
    value = value_of(context)
    rows = value.get("bboxes", []) if isinstance(value, dict) else value
    return float(any(left <= across <= right and top <= down <= bottom for left, top, right, bottom in boxes_of(repr(rows))))


def coordinates_closeness(answer: str, gold: str) -> float:
    """The mean over points of exp(-10 d / sqrt 2), by position.

    Args:
        answer: text of a list of points.
        gold: the same.

    Returns:
        In [0, 1]; 0 when they differ in shape.

    Raises:
        ValueError, TypeError: when either isn't a list of points.
    """
    found, wanted = ([tuple(map(float, point)) for point in items_of(text)] for text in (answer, gold))
    if len(found) != len(wanted) or not wanted or any(len(left) != len(right) for left, right in zip(found, wanted, strict=True)):
        return 0.0
    return sum(math.exp(-10 * math.dist(left, right) / math.sqrt(2)) for left, right in zip(found, wanted, strict=True)) / len(wanted)

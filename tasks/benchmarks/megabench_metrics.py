"""MEGA-Bench's metrics that a rule can compute, each from an answer's text and the gold text to a number in [0, 1].

Owns what each name means (the benchmark's repository, metrics/scoring). Must not know responses or weights. Both texts are
untrusted: a metric may raise ValueError, which is a wrong answer, and evaluates nothing. Metrics that run the model's code, ask a
service or need a dictionary of sounds have no rule here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from tasks.benchmarks import megabench_geometry as geometry
from tasks.benchmarks.megabench_literals import casefolded, items_of, mapping, numbers_of

_LEADING_LETTER = re.compile(r"\(?([A-Za-z])(?:\)|[.:,]|\s|$)")


def simplified(text: str) -> str:
    """A text without spaces, hyphens, tabs, newlines and full stops, in lower case.

    Args:
        text: any.

    Returns:
        What simple_str_match compares.
    """
    return re.sub(r"[ \-\n\t.]", "", text).lower()


def _exact(answer: str, gold: str) -> float:
    if len(gold) == 1 and gold.isalpha():
        match = _LEADING_LETTER.match(answer.strip())
        return float((match.group(1) if match else answer.strip()) == gold)
    return float(answer == gold)


def _code_result(answer: str, gold: str) -> float:
    fenced = re.search(r"```\w*\n(.*?)```", gold, re.DOTALL)
    return float(answer.strip() == (fenced.group(1) if fenced else gold).strip())


def _simple(answer: str, gold: str) -> float:
    return float(simplified(answer) == simplified(gold))


def _any_reference(answer: str, gold: str) -> float:
    return float(any(simplified(answer) == simplified(str(reference)) for reference in items_of(gold)))


def _similarity(answer: str, gold: str) -> float:
    longest = max(len(answer), len(gold))
    if longest > 2000:
        raise ValueError("too long to compare letter by letter")
    return 1.0 if longest == 0 else 1.0 - _edits(answer, gold) / longest


def _near(answer: str, gold: str) -> float:
    return float(_similarity(_ascii_without_articles(answer), _ascii_without_articles(gold)) >= 0.9)


def _ascii_without_articles(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))


def _edits(first: str, second: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours (Damerau-Levenshtein, optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        before, last, row = row, before, [i]
        for j, right in enumerate(second, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == second[j - 2] and first[i - 2] == right:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _lines(text: str) -> set[str]:
    return {line.strip().lower() for line in text.split("\n") if line.strip()}


def _commas(text: str) -> set[str]:
    return {part.strip().lower() for part in text.split(",") if part.strip()}


def _prefix(answer: str, gold: str) -> float:
    found, wanted = items_of(answer), items_of(gold)
    same = 0
    for left, right in zip(found, wanted, strict=False):
        if left != right:
            break
        same += 1
    return same / len(wanted) if wanted else float(not found)


def _positions(answer: str, gold: str) -> float:
    found, wanted = ([casefolded(item) for item in items_of(text)] for text in (answer, gold))
    if len(found) != len(wanted) or not wanted:
        return 0.0
    return sum(left == right for left, right in zip(found, wanted, strict=True)) / len(wanted)


def _precision(answer: str, gold: str) -> float:
    found, wanted = set(items_of(answer)), set(items_of(gold))
    return len(found & wanted) / len(found) if found else float(not wanted)


def _jaccard_of(found: set[Any], wanted: set[Any]) -> float:
    return len(found & wanted) / len(found | wanted) if found | wanted else 1.0


def _jaccard(answer: str, gold: str) -> float:
    return _jaccard_of(set(items_of(answer)), set(items_of(gold)))


def _jaccard_casefolded(answer: str, gold: str) -> float:
    return _jaccard_of({casefolded(item) for item in items_of(answer)}, {casefolded(item) for item in items_of(gold)})


def _chess(answer: str, gold: str) -> float:
    found, wanted = ({str(move).rstrip("!#") for move in items_of(text)} for text in (answer, gold))
    return _jaccard_of(found, wanted)


def _dict_equality(answer: str, gold: str) -> float:
    return float(mapping(answer) == mapping(gold))


def _dict_precision(answer: str, gold: str) -> float:
    found, wanted = mapping(answer), mapping(gold)
    return sum(key in wanted and wanted[key] == value for key, value in found.items()) / len(found) if found else float(not wanted)


def _dict_recall(answer: str, gold: str) -> float:
    found, wanted = mapping(answer), mapping(gold)
    same = sum(key in found and str(found[key]) == str(value) for key, value in wanted.items())
    return same / len(wanted) if wanted else float(not found)


def _dict_jaccard(answer: str, gold: str) -> float:
    found, wanted = mapping(answer), mapping(gold)
    keys = found.keys() | wanted.keys()
    if not keys:
        return 1.0
    common = found.keys() & wanted.keys()
    return sum(_jaccard_of(set(items_of(str(found[key]))), set(items_of(str(wanted[key])))) for key in common) / len(keys)


def _relative(answer: str, gold: str) -> float:
    found, wanted = float(answer), float(gold)
    if wanted == 0:
        return float(found == 0)
    return max(0.0, 1.0 - abs(found - wanted) / abs(wanted))


def _positive_integer(answer: str, gold: str) -> float:
    found, wanted = int(answer), int(gold)
    return -1.0 if found <= 0 and wanted <= 0 else float(found == wanted)  # -1: the field doesn't count


def _rmse(answer: str, gold: str) -> float:
    return 1.0 - min(max(abs(float(answer) - float(gold)), 0.0), 0.1) / 0.1


def _angles(answer: str, gold: str) -> float:
    found, wanted = numbers_of(answer), numbers_of(gold)
    if len(found) != len(wanted):
        return 0.0
    return 1.0 - min(sum(abs(left - right) for left, right in zip(found, wanted, strict=True)) / len(wanted), 10.0) / 10.0


def _equal_items(convert: Callable[[str], Iterable[Any]]) -> Callable[[str, str], float]:
    return lambda answer, gold: float(convert(answer) == convert(gold))


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_str_match": _exact,
    "exact_str_match_case_insensitive": lambda answer, gold: float(answer.lower() == gold.lower()),
    "code_result_exact_str_match": _code_result,
    "simple_str_match": _simple,
    "multi_ref_phrase": _any_reference,
    "near_str_match": _near,
    "normalized_similarity_damerau_levenshtein": _similarity,
    "set_equality": _equal_items(lambda text: set(items_of(text))),
    "set_equality_case_insensitive": _equal_items(lambda text: {casefolded(item) for item in items_of(text)}),
    "str_set_equality_comma": _equal_items(_commas),
    "str_set_equality_line_break": _equal_items(_lines),
    "sequence_equality": _equal_items(items_of),
    "sequence_equality_case_insensitive": _equal_items(lambda text: [casefolded(item) for item in items_of(text)]),
    "sequence_accuracy_case_insensitive": _positions,
    "longest_common_list_prefix_ratio": _prefix,
    "set_precision": _precision,
    "jaccard_index": _jaccard,
    "jaccard_index_case_insensitive": _jaccard_casefolded,
    "chess_move_list_jaccard_index": _chess,
    "dict_equality": _dict_equality,
    "dict_precision": _dict_precision,
    "dict_exact_str_match_agg_recall": _dict_recall,
    "dict_jaccard_agg_jaccard": _dict_jaccard,
    "number_rel_diff_ratio": _relative,
    "positive_int_match": _positive_integer,
    "normalized_rmse": _rmse,
    "angle_seq_float_rmse": _angles,
    "nbbox_iou_tuple": lambda answer, gold: geometry.mean_best_overlap(geometry.boxes_of(answer), geometry.boxes_of(gold)),
    "nbbox_iou_single": lambda answer, gold: geometry.single_overlap(geometry.boxes_of(answer), geometry.boxes_of(gold)),
    "nbbox_iou_sequence": geometry.paired_overlaps,
    "dict_nbbox_iou_tuple_agg_jaccard": geometry.overlaps_by_key,
    "xml_nbbox_iou_single": lambda answer, gold: geometry.single_overlap(geometry.tagged_boxes_of(answer), geometry.tagged_boxes_of(gold)),
    "xml_norm_point_distance": geometry.point_closeness,
    "xml_norm_point_in_bbox": geometry.point_in_any_box,
    "sequence_coords_similarity": geometry.coordinates_closeness,
}

"""What the VL-Rethinker paper reports (arXiv 2504.08837): percent, greedy answers of at most 2048 tokens."""

from __future__ import annotations

from collections.abc import Mapping

COLUMNS = ("mathvision", "mathvista", "mathverse", "mmmu_pro", "mmmu", "emma", "megabench")


def _row(*values: float | None) -> Mapping[str, float]:
    return {name: value for name, value in zip(COLUMNS, values, strict=True) if value is not None}


RESULTS: Mapping[str, Mapping[str, float]] = {
    "VL-Rethinker-7B": _row(32.3, 74.9, 54.2, 41.7, 56.7, 29.7, 37.2),
    "VL-Rethinker-72B": _row(43.9, 80.3, 61.7, 53.9, 68.8, 38.9, 51.3),
    "7B, SSR": _row(29.8, 72.4, 53.2, 40.9, None, 29.5, None),
    "7B, filter": _row(28.5, 72.0, 50.0, 40.0, None, 26.9, None),
    "7B, GRPO": _row(26.0, 70.9, 51.4, 38.8, None, 26.2, None),
    "7B, SSR, no text (13K)": _row(29.1, 73.5, 53.5, 41.1, None, 28.7, None),
    "7B, SSR, no science, no text (11K)": _row(28.0, 71.6, 50.3, 39.7, None, 28.0, None),
}

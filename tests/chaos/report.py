"""The table that `make chaos` prints. Values only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tests.chaos.accounting import Verdict


def table(rows: Sequence[dict[str, Any]], verdict: Verdict) -> str:
    """Make Markdown of a series.

    Args:
        rows: one a fault: fault, recovered, seconds.
        verdict: over the whole run.

    Returns:
        The table, one line a kind of fault, and the bottom line below it.
    """
    lines = ["| fault | injected | recovered | seconds to recover, median (max) |", "|---|---|---|---|"]
    for name in sorted({row["fault"] for row in rows}):
        own = [row for row in rows if row["fault"] == name]
        seconds = [row["seconds"] for row in own if row["recovered"]]
        told = f"{statistics.median(seconds):.1f} ({max(seconds):.1f})" if seconds else "-"
        lines.append(f"| {name} | {len(own)} | {len(seconds)} | {told} |")
    lines.append(f"| all | {len(rows)} | {sum(row['recovered'] for row in rows)} | |")
    lines += [
        "",
        f"{verdict.steps} steps; trajectories acknowledged {verdict.acknowledged}, consumed {verdict.consumed},"
        f" waiting for a step {verdict.waiting}; lost {len(verdict.lost)}, duplicated {len(verdict.duplicated)}.",
        *verdict.problems,
    ]
    return "\n".join(lines)

"""The table that `make chaos` prints. Values only."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.chaos.accounting import Verdict


def table(rows: Sequence[dict[str, Any]], verdict: Verdict) -> str:
    """Make Markdown of a series.

    Args:
        rows: one a fault, in their order: fault, step (steps done before it), recovered, seconds.
        verdict: over the whole run.

    Returns:
        The table, one line a kind of fault, and the bottom line below it.
    """
    lines = ["| fault | injected | recovered | seconds to recover, median (max) | lost | duplicated |", "|---|---|---|---|---|---|"]
    lost, duplicated = by_fault(rows, verdict.lost_in), by_fault(rows, verdict.duplicated_in)
    for name in sorted({row["fault"] for row in rows}):
        own = [row for row in rows if row["fault"] == name]
        seconds = [row["seconds"] for row in own if row["recovered"]]
        told = f"{statistics.median(seconds):.1f} ({max(seconds):.1f})" if seconds else "-"
        lines.append(f"| {name} | {len(own)} | {len(seconds)} | {told} | {lost[name]} | {duplicated[name]} |")
    whole = f"{sum(row['recovered'] for row in rows)} | | {len(verdict.lost)} | {len(verdict.duplicated)}"
    lines.append(f"| all | {len(rows)} | {whole} |")
    lines += [
        "",
        f"{verdict.steps} steps; trajectories acknowledged {verdict.acknowledged}, consumed {verdict.consumed},"
        f" waiting for a step {verdict.waiting}; lost {len(verdict.lost)}, duplicated {len(verdict.duplicated)}.",
        *verdict.problems,
    ]
    return "\n".join(lines)


def by_fault(rows: Sequence[dict[str, Any]], steps: Iterable[int]) -> Counter[str]:
    """Put what went wrong in a step down to the newest fault that was injected before the step's end.

    Args:
        rows: see table.
        steps: of a trajectory each.

    Returns:
        Trajectories by fault; what went wrong before any fault is under "".
    """
    return Counter(next((row["fault"] for row in reversed(rows) if row["step"] < step), "") for step in steps)

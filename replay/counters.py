"""What has happened to a buffer since the start of the run, in numbers.

Owns the counters. Must not know rows, draws or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema import ReplayConfig
from replay.groups import InsertReceipt
from replay.ratio import SampleToInsertRatio


@dataclass(kw_only=True)
class Counters:
    """Counts that only rise; their names are those of the metrics."""

    groups_inserted: int = 0
    duplicate_groups: int = 0
    inserted: int = 0  # trajectories
    admitted: int = 0  # of the consumed ones, those that entered the table
    consumed_groups: int = 0
    dropped_groups: int = 0  # of them, those past the staleness bound
    sampled: int = 0  # draws
    removed: int = 0  # by the plan's remover, the reuse limit, or because they were mastered
    evicted: int = 0  # by the bounds of memory
    refreshed: int = 0  # advantages that got a newer baseline

    def count_insert(self, receipt: InsertReceipt) -> None:
        """Count what an insert added."""
        self.groups_inserted += receipt.groups
        self.duplicate_groups += receipt.duplicate_groups
        self.inserted += receipt.trajectories

    def count_draw(self, *, groups: int, dropped: int, draws: int) -> None:
        """Count a step.

        Args:
            groups: that it consumed.
            dropped: of them, those past the staleness bound.
            draws: that were made.
        """
        self.consumed_groups += groups
        self.dropped_groups += dropped
        self.sampled += draws

    def ratio(self, config: ReplayConfig) -> SampleToInsertRatio:
        """The rule of draws to inserts, as it stands.

        Args:
            config: with the rule's settings.
        """
        return SampleToInsertRatio(
            min_size=config.min_size,
            samples_per_insert=config.samples_per_insert,
            error=config.samples_per_insert_error or 0.0,
            inserted=self.admitted,
            sampled=self.sampled,
        )

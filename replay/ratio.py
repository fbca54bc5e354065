"""How many draws go with how many inserts.

Owns the rule and its counts. Must not know rows, waiting or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class SampleToInsertRatio:
    """Keeps draws at ``samples_per_insert`` for each insert, within an error budget, once ``min_size`` rows are there.

    Reverb's rule (arXiv 2102.04736, section 3.3): inserted * samples_per_insert - sampled stays within ``error`` of
    min_size * samples_per_insert. Below min_size every insert may go, also the one that gets past it, and no sample.
    """

    min_size: int = 1
    samples_per_insert: float | None = None  # None: min_size is the only rule
    error: float = 0.0  # draws
    inserted: int = 0  # since the start of the run
    sampled: int = 0

    def may_insert(self, num: int, *, size: int) -> bool:
        """Tell whether rows may go in.

        Args:
            num: how many.
            size: rows that are there.

        Returns:
            False when draws must come first.
        """
        if self.samples_per_insert is None or size < self.min_size:
            return True
        return (self.inserted + num) * self.samples_per_insert - self.sampled <= self.min_size * self.samples_per_insert + self.error

    def may_sample(self, num: int, *, size: int) -> bool:
        """Tell whether draws may be made.

        Args:
            num: how many.
            size: rows that are there.

        Returns:
            False when inserts must come first.
        """
        if size < self.min_size:
            return False
        if self.samples_per_insert is None:
            return True
        return self.inserted * self.samples_per_insert - self.sampled - num >= self.min_size * self.samples_per_insert - self.error

    def never(self, *, inserts: int = 0, samples: int = 0) -> bool:
        """Tell whether a call is larger than the whole error budget, so that waiting wouldn't help once min_size was reached.

        Args:
            inserts: rows of one call.
            samples: draws of one call.

        Returns:
            True when the call can't ever go.
        """
        if self.samples_per_insert is None:
            return False
        return max(inserts * self.samples_per_insert, samples) > 2 * self.error

    def __str__(self) -> str:
        if self.samples_per_insert is None:
            return f"{self.inserted} inserted, {self.sampled} drawn, replay.min_size={self.min_size}"
        return (
            f"{self.inserted} inserted, {self.sampled} drawn, replay.samples_per_insert={self.samples_per_insert:g} with an error of "
            f"{self.error:g}, replay.min_size={self.min_size}"
        )

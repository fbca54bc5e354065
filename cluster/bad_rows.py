"""Counting what can't be used, and the point at which a run gives up. Values only."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

JUDGE_AFTER = 64  # prompts handed out before a share of bad ones means anything


class TooManyBadRows(RuntimeError):
    """More of the data is bad than data.max_bad_fraction allows; the message names examples."""


class BadRows:
    """Names each bad row once in the log, and ends the run past the limit.

    Args:
        max_fraction: of the prompts handed out, in [0, 1].
    """

    def __init__(self, *, max_fraction: float) -> None:
        self._max_fraction = max_fraction
        self._reasons: dict[str, str] = {}

    @property
    def count(self) -> int:
        """Distinct bad rows."""
        return len(self._reasons)

    def state(self) -> dict[str, str]:
        """What a checkpoint keeps: the reason of each bad row."""
        return dict(self._reasons)

    def restore(self, state: dict[str, str]) -> None:
        """Go on from a checkpoint; rows that were found bad since stay so.

        Args:
            state: of a run over the same data.
        """
        self._reasons = {**state, **self._reasons}

    def report(self, rows: Iterable[tuple[str, str]], *, handed_out: int) -> None:
        """Log and count bad rows.

        Args:
            rows: (id, reason).
            handed_out: rows looked at so far, bad ones included.

        Raises:
            TooManyBadRows: past the limit.
        """
        for row_id, reason in rows:
            if row_id not in self._reasons:
                self._reasons[row_id] = reason
                logger.warning("skipped %s: %s", row_id, reason)
        if handed_out >= JUDGE_AFTER and self.count > self._max_fraction * handed_out:
            examples = "; ".join(f"{row_id}: {reason}" for row_id, reason in list(self._reasons.items())[:3])
            raise TooManyBadRows(
                f"{self.count} of {handed_out} prompts can't be used, more than data.max_bad_fraction={self._max_fraction} allows "
                f"({examples})"
            )

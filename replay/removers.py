"""Which rows leave: the removers.

Owns the lifetime of rows that a step has consumed. Must not know rows, Arrow, modes or Ray. Rows that no step has consumed yet are
never shown to a remover, so that nothing fresh can be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Remover(Protocol):
    """One way to decide what leaves; asked before a draw (about earlier steps' rows) and after it (about this step's too)."""

    def expired(self, ages: NDArray[np.int64], *, step_trajectories: int) -> NDArray[np.bool_]:
        """Tell what leaves.

        Args:
            ages: [N] policy versions of the consumed rows, in the order of their insertion.
            step_trajectories: how many trajectories this step consumed, those without a signal included.

        Returns:
            [N] bool, True for a row that leaves.
        """


@dataclass(frozen=True)
class EndOfStep:
    """Nothing outlives the step that consumed it."""

    def expired(self, ages: NDArray[np.int64], *, step_trajectories: int) -> NDArray[np.bool_]:
        """All; see Remover."""
        return np.ones(len(ages), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue of a share of a step's trajectories, oldest out."""

    share: float

    def expired(self, ages: NDArray[np.int64], *, step_trajectories: int) -> NDArray[np.bool_]:
        """All but the newest ``share * step_trajectories``; see Remover."""
        return np.arange(len(ages)) < len(ages) - int(self.share * step_trajectories)


@dataclass(frozen=True, kw_only=True)
class MaxAge:
    """Nothing older than a number of policy versions."""

    max_age: int

    def expired(self, ages: NDArray[np.int64], *, step_trajectories: int) -> NDArray[np.bool_]:
        """Those past max_age; see Remover."""
        return ages > self.max_age

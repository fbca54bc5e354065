"""Which rows leave: the removers, for rows whose time is over and for rows that must make room.

Owns the lifetime of rows that a step has consumed. Must not know rows, Arrow, modes or Ray. Rows that no step has consumed yet are
never shown to a remover, so that nothing fresh can be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from conf.schema import ReplayRemover


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


@dataclass(frozen=True)
class Keep:
    """Rows leave only to make room."""

    def expired(self, ages: NDArray[np.int64], *, step_trajectories: int) -> NDArray[np.bool_]:
        """None; see Remover."""
        return np.zeros(len(ages), dtype=bool)


def first_to_leave(remover: ReplayRemover, *, versions: NDArray[np.int64], priorities: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Choose the rows that make room.

    Args:
        remover: ``oldest`` arrival, ``stalest`` policy version, or ``lowest_priority``; of equals the oldest arrival goes first.
        versions: [N] of the consumed rows, in the order of their insertion.
        priorities: [N] of the same rows.
        num: n <= N, how many are to leave.

    Returns:
        [n] indices, the first to leave first.
    """
    if remover is ReplayRemover.oldest:
        return np.arange(num)
    values = versions if remover is ReplayRemover.stalest else priorities
    if num < len(values):  # all that come before the n-th value or are equal to it, so that only those need sorting
        candidates = np.flatnonzero(values <= np.partition(values, num - 1)[num - 1]) if num else np.empty(0, np.int64)
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(values[candidates], kind="stable")][:num]

"""Which rows a draw takes: the selectors.

Owns random choice over arrays of priorities and ages. Must not know rows, Arrow, modes or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from algorithms.priorities import selection_probabilities


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a selector chose among N candidates."""

    indices: NDArray[np.int64]  # [n] into the candidates, in the order of the draw
    probabilities: NDArray[np.float64]  # [n] of each draw, in (0, 1]
    table_sizes: NDArray[np.int64]  # [n] candidates that could have been drawn, at most N


class Selector(Protocol):
    """One way to draw rows."""

    def num_drawable(self, priorities: NDArray[np.float64]) -> int:
        """How many of the candidates this selector can ever draw.

        Args:
            priorities: [N] float64 >= 0.

        Returns:
            A count, 0 when a draw would fail.
        """

    def select(self, rng: np.random.Generator, *, priorities: NDArray[np.float64], ages: NDArray[np.int64], num: int) -> Selection:
        """Draw.

        Args:
            rng: moved on by the draw.
            priorities: [N] float64 >= 0.
            ages: [N] policy versions >= 0.
            num: n >= 1, how many to draw.

        Returns:
            n draws.

        Raises:
            ValueError: when nothing can be drawn.
        """


@dataclass(frozen=True)
class Permutation:
    """Every candidate once in random order; when more are asked for, permutation after permutation."""

    def num_drawable(self, priorities: NDArray[np.float64]) -> int:
        """All of them; see Selector."""
        return len(priorities)

    def select(self, rng: np.random.Generator, *, priorities: NDArray[np.float64], ages: NDArray[np.int64], num: int) -> Selection:
        """Draw; counts of two candidates never differ by more than one. See Selector."""
        size = len(priorities)
        if size == 0:
            raise ValueError(f"cannot draw {num} rows: there are no candidates")
        rounds = [rng.permutation(size) for _ in range(-(-num // size))]
        return Selection(indices=np.concatenate(rounds)[:num], probabilities=np.full(num, 1.0 / size), table_sizes=np.full(num, size))


@dataclass(frozen=True, kw_only=True)
class Prioritized:
    """Independent draws with replacement, P ~ (priority^exponent + epsilon) exp(-age / decay)."""

    exponent: float
    epsilon: float = 0.0
    decay: float | None = None  # tau in policy versions; None: age plays no part

    def num_drawable(self, priorities: NDArray[np.float64]) -> int:
        """Those with a weight; see Selector."""
        return len(priorities) if self.epsilon > 0 else int(np.count_nonzero(priorities))

    def select(self, rng: np.random.Generator, *, priorities: NDArray[np.float64], ages: NDArray[np.int64], num: int) -> Selection:
        """Draw by inversion of the cumulative distribution; rows of weight 0 are never drawn. See Selector."""
        probabilities = selection_probabilities(
            priorities, ages if self.decay is not None else None, exponent=self.exponent, epsilon=self.epsilon, decay=self.decay
        )
        cumulative = np.cumsum(probabilities)
        # the last sum is 1 only up to rounding; scaled by it, a uniform number in [0, 1) always falls on a row with weight
        indices = np.searchsorted(cumulative / cumulative[-1], rng.random(num), side="right")
        return Selection(indices=indices, probabilities=probabilities[indices], table_sizes=np.full(num, np.count_nonzero(probabilities)))

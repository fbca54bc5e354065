"""Prioritised draws with age decay at the cost of a tree's height: P ~ (priority^alpha + epsilon) exp(-age / tau).

Owns the weights of the rows that may be drawn, by the storage's places. Must not know Arrow, groups, modes or Ray.

An age is the learner's version minus the row's, so exp(-age / tau) = exp(-(learner - base) / tau) exp((version - base) / tau) for any base.
The first factor is the same for all rows and drops out of P. A row's weight therefore changes only when its priority does, however many
versions pass, and ages cost nothing. Far from the base the second factor would leave float64's range; the base is then moved and all
weights computed anew, from priorities and versions and not from each other, so that no error is carried over (docs/replay.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replay.reuse import draw_within_limits
from replay.selectors import Prioritized, Selection
from replay.sumtree import SumTree

MAX_EXPONENT = 200.0  # of e, above the base: a weight stays below 1e87 * MAX_MAGNITUDE, so that sums of them are finite
MAX_MAGNITUDE = 1e120  # of priority^alpha + epsilon
TINY = 1e-200  # a sum of weights below it says that all rows lie far below the base


def magnitudes(priorities: NDArray[np.float64], rule: Prioritized) -> NDArray[np.float64]:
    """The part of the weight that age plays no part in.

    Args:
        priorities: [K] >= 0.
        rule: of the draws.

    Returns:
        [K] priority^alpha + epsilon; 0^alpha is 0 also for alpha 0.

    Raises:
        ValueError: when one is too large to be summed.
    """
    with np.errstate(over="ignore"):
        found = np.where(priorities > 0, priorities**rule.exponent, 0.0) + rule.epsilon
    if np.any(found > MAX_MAGNITUDE):
        worst = float(priorities[np.argmax(found)])
        raise ValueError(f"priority {worst:g} to the power of replay.priority_exponent={rule.exponent:g} is above {MAX_MAGNITUDE:g}")
    return found


class PriorityTree:
    """Draws with replacement among the rows that were entered.

    Args:
        rule: exponent, epsilon and decay of the draws.
        max_times_sampled: a row is not drawn more often in its life; None: no limit.
    """

    def __init__(self, rule: Prioritized, *, max_times_sampled: int | None = None) -> None:
        self._rule = rule
        self._limit = max_times_sampled
        self._tree = SumTree()
        self._magnitudes = np.zeros(0)  # by place; 0 where no row is entered
        self._versions = np.zeros(0, dtype=np.int64)
        self._base = 0
        self._num_drawable = 0

    @property
    def num_drawable(self) -> int:
        """Rows with a weight; when it's 0 nothing can be drawn."""
        return self._num_drawable

    def enter(self, places: NDArray[np.int64], priorities: NDArray[np.float64], versions: NDArray[np.int64]) -> None:
        """Make rows drawable, or give them another priority.

        Args:
            places: [K] distinct.
            priorities: [K] >= 0.
            versions: [K] the oldest policy version of each row.

        Raises:
            ValueError: when a priority is too large; nothing is changed.
        """
        if len(places) == 0:
            return
        found = magnitudes(priorities, self._rule)
        self._reach(int(places.max()) + 1)
        self._num_drawable += int(np.count_nonzero(found)) - int(np.count_nonzero(self._magnitudes[places]))
        self._magnitudes[places] = found
        self._versions[places] = versions
        if self._rule.decay is not None and (int(versions.max()) - self._base) / self._rule.decay > MAX_EXPONENT:
            self._rebase()
        else:
            self._tree.set(places, self._weights(places))

    def leave(self, places: NDArray[np.int64]) -> None:
        """Take rows out of the draws; rows that were never entered may be among them.

        Args:
            places: [K] distinct.
        """
        places = places[places < len(self._magnitudes)]
        places = places[self._magnitudes[places] > 0]
        self._num_drawable -= len(places)
        self._magnitudes[places] = 0.0
        self._tree.set(places, 0.0)

    def move(self, old: NDArray[np.int64], num_places: int) -> None:
        """Follow the storage when it packs its rows.

        Args:
            old: [N] the former places of the rows that are now at 0 to N - 1.
            num_places: that the storage has now.
        """
        self._reach(int(old.max(initial=-1)) + 1)
        magnitudes, versions = np.zeros(num_places), np.zeros(num_places, dtype=np.int64)
        magnitudes[: len(old)], versions[: len(old)] = self._magnitudes[old], self._versions[old]
        self._magnitudes, self._versions = magnitudes, versions
        self._tree.reset(self._weights(np.arange(num_places)))

    def draw(self, rng: np.random.Generator, num: int, times_sampled: NDArray[np.int64]) -> Selection:
        """Draw rows.

        Args:
            rng: moved on by the draw.
            num: n >= 1, how many to draw; fewer come when the limit leaves fewer.
            times_sampled: [places] how often each row has been drawn before.

        Returns:
            Places with the probability of each draw at its moment and the number of rows that could then have been drawn.

        Raises:
            ValueError: when nothing can be drawn.
        """
        if self._num_drawable == 0:
            raise ValueError(f"cannot draw {num} rows: there are no candidates")
        if self._tree.total < TINY:
            self._rebase()
        if self._limit is not None:
            return draw_within_limits(rng, self._tree, num, self._limit - times_sampled, num_drawable=self._num_drawable)
        total = self._tree.total
        places = self._tree.find(rng.random(num))
        return Selection(indices=places, probabilities=self._tree[places] / total, table_sizes=np.full(num, self._num_drawable))

    def state(self) -> dict[str, int]:
        """What the weights depend on besides rows and places."""
        return {"base": self._base}

    def load(self, state: dict[str, int]) -> None:
        """Take on a former base, before the rows are entered."""
        self._base = state["base"]

    def _weights(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        found = self._magnitudes[places]
        if self._rule.decay is None:
            return found
        # the versions of rows that left may lie anywhere, and their 0 times infinity would not be 0
        return found * np.exp(np.where(found > 0, self._versions[places] - self._base, 0) / self._rule.decay)

    def _rebase(self) -> None:
        """Count versions from the newest row on."""
        entered = np.flatnonzero(self._magnitudes)
        self._base = int(self._versions[entered].max())
        self._tree.reset(self._weights(np.arange(len(self._magnitudes))))

    def _reach(self, num_places: int) -> None:
        if num_places <= len(self._magnitudes):
            return
        size = max(num_places, 2 * len(self._magnitudes))
        for name in ("_magnitudes", "_versions"):
            grown = np.zeros(size, dtype=getattr(self, name).dtype)
            grown[: len(getattr(self, name))] = getattr(self, name)
            setattr(self, name, grown)

"""Weights under a tree of sums: a draw or a change costs the height of the tree, not the number of weights.

Owns the numbers alone. Must not know rows, priorities, ages or Ray. One level of the tree is one array, a node the sum of FANOUT neighbours
below it, so a level costs one NumPy operation for all draws of a call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FANOUT = 16  # a million weights are five levels; a row of 16 float64 is two cache lines


class SumTree:
    """Non-negative weights at places 0, 1, 2, ... that are drawn in proportion.

    A node is recomputed from its children, never changed by a difference, so that rounding errors don't pile up; it depends on nothing but
    the weights and their places: not on the room behind them, so that a tree that was put together again draws the same to the last bit.
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[np.float64]] = [np.zeros(FANOUT)]

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(_node_sums(self._levels[-1])[0])

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Look weights up; places that were never set hold 0."""
        leaves = self._levels[0]
        inside = places < len(leaves)
        return np.where(inside, leaves[np.where(inside, places, 0)], 0.0)

    def set(self, places: NDArray[np.int64], weights: NDArray[np.float64] | float) -> None:
        """Change weights.

        Args:
            places: [K] >= 0, distinct.
            weights: [K] finite, >= 0.
        """
        if len(places) == 0:
            return
        self._reach(int(places.max()))
        self._levels[0][places] = weights
        nodes = np.sort(places)
        for below, level in zip(self._levels, self._levels[1:], strict=False):
            nodes = nodes // FANOUT
            nodes = nodes[np.concatenate(([True], nodes[1:] != nodes[:-1]))]  # np.unique would sort again
            level[nodes] = _node_sums(below.reshape(-1, FANOUT).take(nodes, axis=0))

    def reset(self, weights: NDArray[np.float64]) -> None:
        """Replace all weights, at a cost that grows with their number.

        Args:
            weights: [N] finite, >= 0, of the places 0 to N - 1; all others get 0.
        """
        self._levels = [np.zeros(-(-max(len(weights), 1) // FANOUT) * FANOUT)]
        self._levels[0][: len(weights)] = weights
        while len(self._levels[-1]) > FANOUT:
            self._add_level()

    def find(self, shares: NDArray[np.float64]) -> NDArray[np.int64]:
        """Invert the cumulative distribution.

        Args:
            shares: [n] in [0, 1) of the total, which is above 0.

        Returns:
            [n] places; a weight of 0 is never found.
        """
        nodes = np.zeros(len(shares), dtype=np.int64)
        total = self.total
        rest = np.minimum(shares * total, np.nextafter(total, 0.0))
        for level in reversed(self._levels):
            children = level.reshape(-1, FANOUT)
            # where draws share nodes, near the root, each node's sums are computed once
            shared = len(children) < len(nodes)
            sums = np.cumsum(children, axis=1).take(nodes, axis=0) if shared else np.cumsum(children.take(nodes, axis=0), axis=1)
            # below the running sum itself: rounding must not carry a draw past the last child that has a weight
            rest = np.minimum(rest, np.nextafter(sums[:, -1], 0.0))
            chosen = (sums <= rest[:, None]).argmin(axis=1)  # the first whose running sum is above
            before = np.arange(-1, sums.size - 1, FANOUT) + chosen
            rest = rest - np.where(chosen > 0, sums.ravel().take(before), 0.0)
            nodes = nodes * FANOUT + chosen
        return nodes

    def _reach(self, place: int) -> None:
        """Grow so that the place exists; doubling keeps the mean cost of an append constant."""
        size = len(self._levels[0])
        if place < size:
            return
        leaves = np.zeros(-(-max(place + 1, 2 * size) // FANOUT) * FANOUT)
        leaves[:size] = self._levels[0]
        self.reset(leaves)

    def _add_level(self) -> None:
        sums = _node_sums(self._levels[-1])
        level = np.zeros(-(-len(sums) // FANOUT) * FANOUT)
        level[: len(sums)] = sums
        self._levels.append(level)


def _node_sums(children: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of each node, added up in the same order at every level, the root's as well."""
    return children.reshape(-1, FANOUT).sum(axis=1)

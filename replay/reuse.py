"""The reuse limit: no row is drawn more often in its life than a setting allows.

Owns the arithmetic of draws under a limit. Must not know rows, modes or Ray.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replay.selectors import Selection
from replay.sumtree import SumTree


def draw_within_limits(rng: np.random.Generator, tree: SumTree, num: int, remaining: NDArray[np.int64], *, num_drawable: int) -> Selection:
    """Draw one after the other, where a row leaves the candidates with its last allowed draw.

    Many are drawn at once and those that fall on a row without draws left are thrown away: what remains is distributed as if the row had
    not been there. What was thrown away is drawn again with its rows out of the tree. The tree comes back as it was.

    Args:
        rng: moved on by the draws.
        tree: weights of the candidates by place; rows without draws left have none.
        num: n >= 1, how many to draw.
        remaining: [places] draws that each row has left.
        num_drawable: places with a weight.

    Returns:
        n draws, fewer when all rows are used up, with the probability and the number of candidates at the moment of each.
    """
    taken: dict[int, int] = {}
    out_of_tree: dict[int, float] = {}
    places: list[int] = []
    probabilities: list[float] = []
    sizes: list[int] = []
    while len(places) < num and len(out_of_tree) < num_drawable:
        total, exhausted_weight, exhausted = tree.total, 0.0, []
        found = tree.find(rng.random(num - len(places)))
        weights = tree[found]
        for place, weight in zip(found.tolist(), weights.tolist(), strict=True):
            used = taken.get(place, 0)
            if used >= remaining[place]:
                continue
            # the weight itself where it is all that is left: the difference of two sums would not be exactly 1 then
            probabilities.append(min(1.0, weight / max(total - exhausted_weight, weight)))
            sizes.append(num_drawable - len(out_of_tree) - len(exhausted))
            places.append(place)
            taken[place] = used + 1
            if used + 1 == remaining[place]:
                exhausted.append(place)
                exhausted_weight += weight
        if exhausted:
            gone = np.array(exhausted, dtype=np.int64)
            out_of_tree.update(zip(exhausted, tree[gone].tolist(), strict=True))
            tree.set(gone, 0.0)
    if out_of_tree:
        tree.set(np.array(list(out_of_tree), dtype=np.int64), np.array(list(out_of_tree.values())))
    return Selection(
        indices=np.array(places, dtype=np.int64),
        probabilities=np.array(probabilities, dtype=np.float64),
        table_sizes=np.array(sizes, dtype=np.int64),
    )

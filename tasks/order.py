"""The order in which prompts are visited: seeded, resumable, and mixed by category where weights ask for it.

Owns which prompt comes next. Must not know files or what is done with prompts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from algorithms.types import Prompt
from tasks.errors import DataError


class PromptOrder:
    """An endless order over prompts; every epoch is a new permutation, so no prompt repeats within one.

    With weights, every category is a stream of its own with its own epochs, and the next prompt comes from the category that is furthest
    behind its share. So any stretch of the order has the shares that were asked for, to within one prompt a category, and a small
    category is seen more often than a large one, but never twice before all of it was seen once.

    Example: ``order = PromptOrder(prompts, seed=1); index, visit = order.next()``; ``f"{prompt_id}@{visit}"`` is unique in a run.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, weights: Mapping[str, float] | None = None) -> None:
        """Start at the first epoch.

        Args:
            prompts: of the data set.
            seed: of the permutations.
            weights: share of the prompts by category, in any unit; None or empty: one stream of all prompts.

        Raises:
            ValueError: when there are no prompts; a DataError when categories and weights don't fit.
        """
        if not len(prompts):
            raise ValueError("an order needs at least one prompt")
        self._seed = seed
        self._num_prompts = len(prompts)
        members: dict[str, list[int]] = {}
        digest = hashlib.sha256()
        for index in range(len(prompts)):
            members.setdefault(prompts[index].category if weights else "", []).append(index)
            digest.update(f"{prompts[index].prompt_id}\0".encode(errors="surrogatepass"))
        self._fingerprint = digest.hexdigest()[:16]
        self._shares = _shares(members, weights or {})
        self._members = {name: np.array(members[name]) for name in self._shares}
        self._taken = dict.fromkeys(self._shares, 0)
        self._permutations: dict[str, tuple[int, np.ndarray]] = {}

    def next(self) -> tuple[int, int]:
        """Take the next prompt.

        Returns:
            Its index, and how often it was taken before (the epoch).
        """
        total = sum(self._taken.values()) + 1
        name = max(self._shares, key=lambda name: self._shares[name] * total - self._taken[name])
        epoch, position = divmod(self._taken[name], len(self._members[name]))
        self._taken[name] += 1
        return int(self._members[name][self._permutation(name, epoch)[position]]), epoch

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps.

        Returns:
            JSON-able; how many prompts were taken of each category, and what the order belongs to.
        """
        belongs = {"num_prompts": self._num_prompts, "seed": self._seed, "fingerprint": self._fingerprint, "shares": dict(self._shares)}
        return {**belongs, "taken": dict(self._taken)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where state() was taken.

        Args:
            state: of an order over the same data, weights and seed.

        Raises:
            ValueError: when it belongs to other data, weights or another seed, or is out of range.
        """
        for key, own in self.state().items():
            if key != "taken" and state.get(key) != own:
                raise ValueError(f"this order has {key}={own}, the saved one {key}={state.get(key)}: the data or its settings were changed")
        taken = state["taken"]
        if set(taken) != set(self._taken) or any(not isinstance(count, int) or count < 0 for count in taken.values()):
            raise ValueError(f"a saved order with taken={taken} doesn't fit the categories {', '.join(self._taken)}")
        self._taken = dict(taken)

    def _permutation(self, name: str, epoch: int) -> np.ndarray:
        known = self._permutations.get(name)
        if known is None or known[0] != epoch:
            seeds = [self._seed, epoch, *([zlib.crc32(name.encode())] if name else [])]
            known = self._permutations[name] = (epoch, np.random.default_rng(seeds).permutation(len(self._members[name])))
        return known[1]


def _shares(members: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each category, in a fixed order; they sum to 1."""
    if not weights:
        return {"": 1.0}
    if missing := sorted(set(members) - set(weights)):
        raise DataError(f"data.category_weights names no weight for {', '.join(map(repr, missing))}; exclude what shall not be seen")
    if unknown := sorted(set(weights) - set(members)):
        raise DataError(f"data.category_weights names {', '.join(map(repr, unknown))}, but the data has {', '.join(sorted(members))}")
    total = sum(weights.values())
    return {name: weights[name] / total for name in sorted(members)}

"""Newer baselines for older rows: where the rows of a prompt are, and what a newer group of it makes of their advantages.

Owns the index from prompts to keys. Must not know storage, draws, modes or Ray.

Stored advantages age: A = r - mean of the group that the row was rolled out with, by a policy of long ago. The mean of a newer group of the
same prompt is a better baseline, A' = r - newest mean. Where A' is 0 the policy always does now what the row shows, right or wrong, and the
row has nothing left to teach.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray


class PromptIndex:
    """Keys of rows by prompt; keys of rows that left stay until their prompt is looked up or they are the majority."""

    def __init__(self) -> None:
        self._keys: dict[str, list[int]] = defaultdict(list)
        self._num_keys = 0

    def add(self, prompts: list[str], keys: NDArray[np.int64]) -> None:
        """Enter rows.

        Args:
            prompts: [K] of the rows.
            keys: [K] of the same rows.
        """
        for prompt, key in zip(prompts, keys.tolist(), strict=True):
            self._keys[prompt].append(key)
        self._num_keys += len(keys)

    def keys(self, prompt: str) -> NDArray[np.int64]:
        """Look up the rows of a prompt.

        Args:
            prompt: its id.

        Returns:
            [K] keys; rows that left may be among them.
        """
        return np.array(self._keys.get(prompt, []), dtype=np.int64)

    def prune(self, stored: NDArray[np.int64]) -> None:
        """Forget rows that left, once they are most of the index.

        Args:
            stored: keys of the rows that are there, rising.
        """
        if self._num_keys <= 2 * len(stored) + 1024:
            return
        kept = {prompt: np.array(keys)[np.isin(keys, stored)].tolist() for prompt, keys in self._keys.items()}
        self._keys = defaultdict(list, {prompt: keys for prompt, keys in kept.items() if keys})
        self._num_keys = sum(map(len, self._keys.values()))

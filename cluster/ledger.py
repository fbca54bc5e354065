"""Which prompts were handed out and which are still owed. Values only, no Ray."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from actors.worker import RolloutRequest
from tasks.dataset import PromptDataset, PromptOrder


class PromptLedger:
    """Issues every prompt once an epoch, and again only those whose visit was cut short by the end of the process.

    Args:
        dataset: the training prompts.
        seed: of the order and of the samples.
    """

    def __init__(self, dataset: PromptDataset, *, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._order = PromptOrder(len(dataset), seed=seed)
        self._owed: dict[str, int] = {}  # group id -> index, handed out and not finished
        self._again: list[tuple[str, int]] = []  # owed by the process before this one
        self._bad: set[int] = set()

    @property
    def owed(self) -> int:
        """Prompts handed out and not finished."""
        return len(self._owed)

    def issue(self) -> RolloutRequest:
        """Hand out the next prompt.

        Returns:
            A request whose samples are determined by the run's seed and the group's id.
        """
        if self._again:
            group_id, index = self._again.pop(0)
            prompt = self._dataset[index]
        else:
            index, visit = self._order.next()
            while index in self._bad:
                index, visit = self._order.next()
            prompt = self._dataset[index]
            group_id = f"{prompt.prompt_id}@{visit}"
        self._owed[group_id] = index
        return RolloutRequest(group_id=group_id, prompt=prompt, seed=zlib.crc32(f"{self._seed}/{group_id}".encode()))

    def settle(self, group_ids: Iterable[str]) -> None:
        """Strike off visits whose groups replay has accepted.

        Args:
            group_ids: of requests handed out before.
        """
        for group_id in group_ids:
            del self._owed[group_id]

    def discard(self, group_ids: Iterable[str]) -> None:
        """Strike off visits whose prompts can't be used, and never issue those prompts again.

        Args:
            group_ids: of requests handed out before.

        Raises:
            ValueError: when no usable prompt is left.
        """
        for group_id in group_ids:
            self._bad.add(self._owed.pop(group_id))
        if len(self._bad) == len(self._dataset):
            raise ValueError(f"none of the {len(self._dataset)} prompts can be used")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps.

        Returns:
            JSON-able; visits still owed are issued again after a restore.
        """
        return {"order": self._order.state(), "owed": [*self._again, *self._owed.items()], "bad": sorted(self._bad)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: of a ledger over the same data and seed.
        """
        self._order.restore(state["order"])
        self._again = [(group_id, index) for group_id, index in state["owed"]]
        self._owed = {}
        self._bad = set(state["bad"])

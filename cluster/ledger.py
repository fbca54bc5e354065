"""Which prompts were handed out, in which turns, and which are still owed. Values only, no Ray."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from actors.worker import RolloutRequest
from tasks.dataset import PromptDataset
from tasks.order import PromptOrder


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class _Visit:
    """One visit of one prompt."""

    turn: int
    index: int  # of the prompt in its data set
    group_id: str


class PromptLedger:
    """Issues every prompt once an epoch, and again only those whose visit was cut short.

    Visits are numbered by turns, 0, 1, 2, ...: step s of the run consumes the turns [s P, (s + 1) P). The turn of a prompt that can't be
    used is given to the next one, so that no turn stays empty.

    Args:
        dataset: the training prompts.
        seed: of the order and of the samples.
        weights: share of the prompts by category; None or empty: as they come.
    """

    def __init__(self, dataset: PromptDataset, *, seed: int, weights: Mapping[str, float] | None = None) -> None:
        self._dataset = dataset
        self._seed = seed
        self._order = PromptOrder(dataset, seed=seed, weights=weights)
        self._owed: dict[str, _Visit] = {}  # by group id: handed out and not finished
        self._again: list[_Visit] = []  # a heap: cut short, by a failure or by the end of the process before this one
        self._free_turns: list[int] = []  # a heap: of prompts that can't be used
        self._next_turn = 0
        self._bad: set[int] = set()

    @property
    def owed(self) -> int:
        """Prompts handed out and not finished."""
        return len(self._owed)

    @property
    def settled(self) -> int:
        """Turns whose groups replay has accepted, since the start of the run."""
        return self._next_turn - len(self._owed) - len(self._again) - len(self._free_turns)

    def issue(self) -> RolloutRequest:
        """Hand out the next prompt: the earliest visit that was cut short, else a new one at the earliest turn.

        Returns:
            A request whose samples are determined by the run's seed and the group's id.
        """
        visit = heapq.heappop(self._again) if self._again else self._new_visit()
        self._owed[visit.group_id] = visit
        return RolloutRequest(
            group_id=visit.group_id,
            turn=visit.turn,
            prompt=self._dataset[visit.index],
            seed=zlib.crc32(f"{self._seed}/{visit.group_id}".encode()),
        )

    def settle(self, group_ids: Iterable[str]) -> None:
        """Strike off visits whose groups replay has accepted.

        Args:
            group_ids: of requests handed out before.
        """
        for group_id in group_ids:
            del self._owed[group_id]

    def take_back(self, group_ids: Iterable[str]) -> None:
        """Issue visits again, first, because their rollout failed; replay recognises a group that it has all the same.

        Args:
            group_ids: of requests handed out before.
        """
        for group_id in group_ids:
            heapq.heappush(self._again, self._owed.pop(group_id))

    def discard(self, group_ids: Iterable[str]) -> None:
        """Strike off visits whose prompts can't be used, and never issue those prompts again.

        Args:
            group_ids: of requests handed out before.

        Raises:
            ValueError: when no usable prompt is left.
        """
        for group_id in group_ids:
            visit = self._owed.pop(group_id)
            heapq.heappush(self._free_turns, visit.turn)
            self._bad.add(visit.index)
        if len(self._bad) == len(self._dataset):
            raise ValueError(f"none of the {len(self._dataset)} prompts can be used")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps.

        Returns:
            JSON-able; visits still owed are issued again after a restore.
        """
        return {
            "order": self._order.state(),
            "owed": [asdict(visit) for visit in sorted([*self._again, *self._owed.values()])],
            "free_turns": sorted(self._free_turns),
            "next_turn": self._next_turn,
            "bad": sorted(self._bad),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: of a ledger over the same data and seed.
        """
        self._order.restore(state["order"])
        self._again = [_Visit(**visit) for visit in state["owed"]]  # sorted, and so a heap
        self._free_turns = list(state["free_turns"])
        self._next_turn = state["next_turn"]
        self._owed = {}
        self._bad = set(state["bad"])

    def _new_visit(self) -> _Visit:
        index, number = self._order.next()
        while index in self._bad:
            index, number = self._order.next()
        if self._free_turns:
            turn = heapq.heappop(self._free_turns)
        else:
            turn = self._next_turn
            self._next_turn += 1
        return _Visit(turn=turn, index=index, group_id=f"{self._dataset[index].prompt_id}@{number}")

"""The rows that are there, what may be drawn of them, and what leaves so that new ones fit.

Owns storage, images, the tree of priorities and both bounds of memory. Must not know groups, the order of events, counters or Ray.
A row that was appended is drawn as an older one, and leaves, only once it is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithms.schema import NARROW_COLUMNS, TRAJECTORY_SCHEMA
from conf.schema import ReplayConfig, ReplayRemover
from replay.images import ImageStore, image_hashes
from replay.plans import SelectionPlan
from replay.priority_tree import PriorityTree, magnitudes
from replay.refresh import PromptIndex
from replay.removers import first_to_leave
from replay.selectors import Selection
from replay.storage import Storage


@dataclass(frozen=True, kw_only=True)
class OlderRows:
    """The open rows as candidates of a draw; see plans.Candidates."""

    tree: PriorityTree
    storage: Storage

    @property
    def num_drawable(self) -> int:
        """Open rows with a weight."""
        return self.tree.num_drawable

    def draw(self, rng: np.random.Generator, num: int) -> Selection:
        """Draw places by priority and age."""
        return self.tree.draw(rng, num, self.storage.column("times_sampled"))


class Table:
    """Stored rows under the bounds of the settings.

    Args:
        config: of the replay.
        plan: of its mode.
        storage: rows to begin with, none of them open; None: no rows.
    """

    def __init__(self, config: ReplayConfig, plan: SelectionPlan, storage: Storage | None = None) -> None:
        self._config = config
        self._plan = plan
        self.storage = storage if storage is not None else Storage(TRAJECTORY_SCHEMA, NARROW_COLUMNS)
        self.images = ImageStore()
        self._tree = PriorityTree(plan.older, max_times_sampled=plan.max_times_sampled) if plan.older is not None else None
        if self._tree is not None:
            self.storage.moved = self._tree.move
        self._prompts = PromptIndex() if config.priority_refresh else None
        self._num_open = 0
        self._open_bytes = 0
        self._newest_version = 0
        self._expired_at: tuple[int, int] | None = None  # version and size after which nothing more was to leave

    def __len__(self) -> int:
        return len(self.storage)

    @property
    def newest_version(self) -> int:
        """The newest policy version of any row that was ever opened."""
        return self._newest_version

    @property
    def older(self) -> OlderRows | None:
        """The open rows as candidates; None when the mode draws none."""
        return OlderRows(tree=self._tree, storage=self.storage) if self._tree is not None else None

    def fits(self, waiting_rows: int, waiting_bytes: int) -> bool:
        """Tell whether rows that can't leave are within the bounds, however many others leave.

        Args:
            waiting_rows: rows outside of the table that can't leave.
            waiting_bytes: of them and of images that are new.

        Returns:
            False when they alone are too much.
        """
        if waiting_rows > self._config.max_trajectories or waiting_bytes > self._config.max_bytes:
            return False
        if waiting_bytes + self.images.num_bytes <= self._config.max_bytes:
            return True
        return waiting_bytes + self.images.pinned_bytes <= self._config.max_bytes

    def make_room(self, waiting_rows: int, waiting_bytes: int) -> int:
        """Let open rows go until rows that fit have room beside the others.

        Args:
            waiting_rows: rows outside of the table that can't leave.
            waiting_bytes: of them.

        Returns:
            How many rows left.
        """
        left = 0
        while self._num_open:
            excess_rows = len(self) + waiting_rows - self._config.max_trajectories
            excess_bytes = self.storage.num_bytes + self.images.num_bytes + waiting_bytes - self._config.max_bytes
            if excess_rows <= 0 and excess_bytes <= 0:
                break
            mean_bytes = max(self._open_bytes / self._num_open, 1.0)
            num = min(self._num_open, max(excess_rows, int(np.ceil(excess_bytes / mean_bytes)), 1))
            left += self.remove(self._first_to_leave(num))
        return left

    def _first_to_leave(self, num: int) -> NDArray[np.int64]:
        """Open rows that make room."""
        if self._config.remover is ReplayRemover.oldest:
            return self.storage.first_open(num)
        places = self.open_places()
        versions, priorities = (self.storage.column(name)[places] for name in ("version", "priority"))
        return places[first_to_leave(self._config.remover, versions=versions, priorities=priorities, num=num)]

    def open(self, places: NDArray[np.int64], shown: Counter[str] | None = None) -> None:
        """Let rows be drawn as older ones, and leave.

        Args:
            places: [K] of rows that aren't.
            shown: the images that they show, of images.image_hashes; None: to be looked up.
        """
        if len(places) == 0:
            return
        self.storage.column("open")[places] = True
        self._num_open += len(places)
        self._open_bytes += int(self.storage.column("row_bytes")[places].sum())
        self._newest_version = max(self._newest_version, int(self.storage.column("version")[places].max()))
        self._expired_at = None
        if self.images.shows_any:
            self.images.unpin(image_hashes(self.storage.gather(places, ["images"])) if shown is None else shown)
        if self._tree is not None:
            self._tree.enter(places, self.storage.column("priority")[places], self.storage.column("version")[places])
        if self._prompts is not None:
            prompts = self.storage.gather(places, ["prompt_id"]).column("prompt_id").to_pylist()
            self._prompts.add(prompts, self.storage.column("key")[places])

    def remove(self, places: NDArray[np.int64]) -> int:
        """Let open rows go.

        Args:
            places: [K] of them.

        Returns:
            K.
        """
        if len(places) == 0:
            return 0
        if self.images.shows_any:
            self.images.release(image_hashes(self.storage.gather(places, ["images"])))
        if self._tree is not None:
            self._tree.leave(places)
        self._num_open -= len(places)
        self._open_bytes -= int(self.storage.column("row_bytes")[places].sum())
        return self.storage.remove(places)

    def expire(self, policy_version: int, step_trajectories: int) -> int:
        """Let the plan's remover have what it wants of the open rows, and the reuse limit what is used up.

        Args:
            policy_version: of the learner.
            step_trajectories: how many trajectories the step consumed.

        Returns:
            How many rows left.
        """
        if self._expired_at == (policy_version, step_trajectories):
            return 0
        places = self.open_places()
        ages = policy_version - self.storage.column("version")[places]
        leaving = self._plan.remover.expired(ages, step_trajectories=step_trajectories)
        if self._plan.max_times_sampled is not None:
            leaving = leaving | (self.storage.column("times_sampled")[places] >= self._plan.max_times_sampled)
        left = self.remove(places[leaving])
        self._expired_at = (policy_version, step_trajectories)
        return left

    def use(self, places: NDArray[np.int64]) -> None:
        """Count draws on their rows.

        Args:
            places: [n] in the order of the draws, one may be there several times.
        """
        np.add.at(self.storage.column("times_sampled"), places, 1)
        if self._plan.max_times_sampled is not None:
            self._expired_at = None

    def retire_used(self, places: NDArray[np.int64]) -> int:
        """Let drawn rows go that may not be drawn again.

        Args:
            places: [n] of the draws.

        Returns:
            How many rows left.
        """
        if self._plan.max_times_sampled is None:
            return 0
        drawn = np.unique(places)
        used_up = self.storage.column("times_sampled")[drawn] >= self._plan.max_times_sampled
        return self.remove(drawn[used_up & self.storage.column("open")[drawn]])

    def check_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Refuse priorities that can't be set.

        Args:
            keys: [K].
            priorities: [K].

        Returns:
            Both as arrays.

        Raises:
            ValueError: when the shapes disagree or a priority is negative, not finite or too large.
        """
        wanted, values = np.asarray(keys, dtype=np.int64), np.asarray(priorities, dtype=np.float64)
        if wanted.ndim != 1 or wanted.shape != values.shape:
            raise ValueError(f"need as many priorities as keys, one dimension; got {wanted.shape} keys, {values.shape} priorities")
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError("priorities must be finite and not negative")
        if self._plan.older is not None:
            magnitudes(values, self._plan.older)
        return wanted, values

    def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.float64]) -> int:
        """Set priorities; of a key that is there several times the last one counts.

        Args:
            keys: [K]; rows that have left are passed over.
            priorities: [K] finite, >= 0, and small enough for priority_tree.magnitudes.

        Returns:
            How many keys were there.

        """
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], priorities[order]
        places, found = self.storage.find(keys)
        last = found.copy()
        last[:-1] &= keys[1:] != keys[:-1]
        places, values = places[last], values[last]
        self.storage.column("priority")[places] = values
        if self._tree is not None:
            is_open = self.storage.column("open")[places]
            places, values = places[is_open], values[is_open]
            self._tree.enter(places, values, self.storage.column("version")[places])
        return int(np.count_nonzero(found))

    def refresh(self, baselines: Mapping[str, float]) -> tuple[int, int]:
        """Give the open rows of some prompts a newer baseline; those without an advantage then have been mastered and leave.

        Args:
            baselines: prompt id -> mean reward of its newest group.

        Returns:
            How many rows got another advantage, and how many left.
        """
        if self._prompts is None or not baselines:
            return 0, 0
        means: list[NDArray[np.float64]] = []
        rows: list[NDArray[np.int64]] = []
        for prompt, mean in baselines.items():
            places, found = self.storage.find(self._prompts.keys(prompt))
            rows.append(places[found])
            means.append(np.full(len(rows[-1]), mean))
        places, mean = np.concatenate(rows), np.concatenate(means)
        rewards = self.storage.gather(places, ["reward"]).column("reward").to_numpy().astype(np.float64)
        advantages = rewards - mean
        self.storage.column("current_advantage")[places] = advantages
        self.storage.column("priority")[places] = np.abs(advantages)
        mastered = advantages == 0
        if self._tree is not None:
            kept = places[~mastered]
            self._tree.enter(kept, np.abs(advantages[~mastered]), self.storage.column("version")[kept])
        left = self.remove(places[mastered])
        self._prompts.prune(self.storage.column("key")[self.storage.places])
        return len(places) - left, left

    def open_places(self) -> NDArray[np.int64]:
        """Places of the rows that a step has consumed, by key."""
        places = self.storage.places
        return places[self.storage.column("open")[places]]

    def advantages(self, places: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Tell the rows' advantages of now.

        Args:
            places: [K] in any order.

        Returns:
            [K]; None when they are those that the rows came with.
        """
        return self.storage.column("current_advantage")[places] if self._prompts is not None else None

    def state(self) -> dict[str, Any]:
        """What later draws depend on besides the rows: see restore."""
        tree = self._tree.state() if self._tree is not None else {}
        return {"newest_version": self._newest_version, "tree": tree}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring a table whose rows were just rebuilt into its former state; its images are added first.

        Args:
            state: of the former table.
        """
        if self._tree is not None:
            self._tree.load(state["tree"])
        self._newest_version = state["newest_version"]
        self.open(self.storage.places)

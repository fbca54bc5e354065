"""The modes of replay, the five of selective sample replay among them, as settings of one plan: admission, draws, removal.

Owns the table of modes and the split of a batch into a fresh and an older part. Must not know rows, Arrow or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from conf.schema import ReplayMode
from replay.removers import EndOfStep, Keep, MaxAge, Queue, Remover
from replay.selectors import Permutation, Prioritized, Selection, Selector

FIFO_EPSILON = 1e-4  # the constant of the authors' code, which draws by |A| + 1e-4
FIFO_SHARE = 0.5  # of the batch, and of a step's trajectories in the queue, as in the authors' code


class Candidates(Protocol):
    """The rows of one part of a batch."""

    @property
    def num_drawable(self) -> int:
        """How many of them can be drawn; 0 when a draw would fail."""

    def draw(self, rng: np.random.Generator, num: int) -> Selection:
        """Draw ``num`` >= 1 of them; the indices are the owner's own numbers of the rows. A reuse limit may make them fewer."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rows drawn by a selector that looks at all of them."""

    selector: Selector
    places: NDArray[np.int64]  # [N] the owner's own numbers of the rows
    priorities: NDArray[np.float64]  # [N] >= 0
    ages: NDArray[np.int64]  # [N] policy versions >= 0

    @property
    def num_drawable(self) -> int:
        """Those that the selector can draw."""
        return self.selector.num_drawable(self.priorities)

    def draw(self, rng: np.random.Generator, num: int) -> Selection:
        """Draw; see Candidates."""
        chosen = self.selector.select(rng, priorities=self.priorities, ages=self.ages, num=num)
        return replace(chosen, indices=self.places[chosen.indices])


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The rows of a step, in random order; n may be 0."""

    places: NDArray[np.int64]  # [n] the owner's own numbers of the rows
    probabilities: NDArray[np.float64]  # [n] of the draw, among the rows of its own part
    table_sizes: NDArray[np.int64]  # [n] rows of that part that could have been drawn
    fresh: NDArray[np.bool_]  # [n] from the fresh pool


@dataclass(frozen=True, kw_only=True)
class SelectionPlan:
    """One mode: its admission, its selectors, its remover; by default a step draws from what it consumes itself, and keeps nothing."""

    signal_only: bool  # admit rows of effective groups with a non-zero advantage only
    waits: bool = True  # rows wait for the step that consumes their group; False: they're older rows as soon as they arrive
    fresh: Selector  # draws the fresh part
    fresh_share: float = 1.0  # of a batch, rounded up
    fresh_once: bool = False  # the fresh part holds no row twice; what it leaves open goes to the older part
    older: Prioritized | None = None  # draws the older part; None: there is none
    remover: Remover = field(default_factory=EndOfStep)
    max_times_sampled: int | None = None  # a row isn't drawn more often in its life

    def admits(self, effective: NDArray[np.bool_], advantages: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Tell which arriving rows are kept.

        Args:
            effective: [N] bool, whether the row's group is effective, that is not uniform in correctness.
            advantages: [N] float.

        Returns:
            [N] bool.
        """
        return effective & (advantages != 0) if self.signal_only else np.ones(len(effective), dtype=bool)

    def draw(self, rng: np.random.Generator, *, fresh: Candidates, older: Candidates | None, num_rows: int) -> Draw:
        """Draw the rows of a step; where one part has no candidates the other fills the batch.

        Args:
            rng: moved on by the draw.
            fresh: rows that this step consumes.
            older: rows that may be drawn besides; None: there are none.
            num_rows: n >= 1.

        Returns:
            n rows, or none when neither part has a candidate; fewer when the reuse limit leaves fewer.
        """
        num_fresh = fresh.num_drawable
        num_older = older.num_drawable if older is not None else 0
        quota = num_rows if num_older == 0 else int(np.ceil(self.fresh_share * num_rows))
        if self.fresh_once and num_older > 0:
            quota = min(quota, num_fresh)
        if self.max_times_sampled is not None:
            quota = min(quota, self.max_times_sampled * num_fresh)
        if num_fresh == 0:
            quota = 0
        parts = []
        if quota > 0:
            parts.append((fresh.draw(rng, quota), True))
        if older is not None and num_older > 0 and quota < num_rows:
            parts.append((older.draw(rng, num_rows - quota), False))
        return _shuffled(rng, parts)


def plan_for(
    mode: ReplayMode, *, priority_exponent: float, age_decay_steps: float, max_age: int, max_times_sampled: int | None = None
) -> SelectionPlan:
    """Look up the plan of a mode.

    Args:
        mode: of the replay.
        priority_exponent: alpha of P ~ |A|^alpha; 1 in the paper.
        age_decay_steps: tau of exp(-age / tau) in policy versions, of modes ``fresh`` and ``prioritized``.
        max_age: in policy versions, of mode ``fresh``; nothing older is drawn.
        max_times_sampled: draws of a row in its life, of the modes that keep rows; None: no limit.

    Returns:
        Its settings.

    Raises:
        ValueError: when a number is out of range.
    """
    if priority_exponent < 0 or age_decay_steps <= 0 or max_age < 0:
        raise ValueError(
            f"replay needs priority_exponent >= 0, age_decay_steps > 0, max_age >= 0; got {priority_exponent}, {age_decay_steps}, {max_age}"
        )
    by_advantage = Prioritized(exponent=priority_exponent)
    plans = {
        ReplayMode.none: SelectionPlan(signal_only=False, fresh=Permutation()),
        ReplayMode.filter: SelectionPlan(signal_only=True, fresh=Permutation()),
        ReplayMode.episode: SelectionPlan(signal_only=True, fresh=by_advantage),
        ReplayMode.fifo: SelectionPlan(
            signal_only=True,
            fresh=Permutation(),
            fresh_share=FIFO_SHARE,
            older=Prioritized(exponent=priority_exponent, epsilon=FIFO_EPSILON),
            remover=Queue(share=FIFO_SHARE),
            max_times_sampled=max_times_sampled,
        ),
        ReplayMode.fresh: SelectionPlan(
            signal_only=True,
            fresh=Permutation(),
            fresh_once=True,
            older=Prioritized(exponent=priority_exponent, decay=age_decay_steps),
            remover=MaxAge(max_age=max_age),
            max_times_sampled=max_times_sampled,
        ),
        ReplayMode.prioritized: SelectionPlan(
            signal_only=False,
            waits=False,
            fresh=Permutation(),
            older=Prioritized(exponent=priority_exponent, decay=age_decay_steps),
            remover=Keep(),
            max_times_sampled=max_times_sampled,
        ),
    }
    return plans[ReplayMode(mode)]


def _shuffled(rng: np.random.Generator, parts: list[tuple[Selection, bool]]) -> Draw:
    """Join the parts and mix them, so that every update of a step gets its share of each."""
    nothing = Selection(indices=np.empty(0, np.int64), probabilities=np.empty(0), table_sizes=np.empty(0, np.int64))
    parts = parts or [(nothing, False)]
    order = rng.permutation(sum(len(part.indices) for part, _ in parts))
    return Draw(
        places=np.concatenate([part.indices for part, _ in parts])[order],
        probabilities=np.concatenate([part.probabilities for part, _ in parts])[order],
        table_sizes=np.concatenate([part.table_sizes for part, _ in parts])[order],
        fresh=np.concatenate([np.full(len(part.indices), is_fresh) for part, is_fresh in parts])[order],
    )

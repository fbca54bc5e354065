"""The five modes of selective sample replay as settings of one plan: who is admitted, how a batch is drawn, who leaves.

Owns the table of modes and the split of a batch into a fresh and an older part. Must not know rows, Arrow or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conf.schema import ReplayMode
from replay.removers import EndOfStep, MaxAge, Queue, Remover
from replay.selectors import Permutation, Prioritized, Selector

FIFO_EPSILON = 1e-4  # the constant of the authors' code, which draws by |A| + 1e-4
FIFO_SHARE = 0.5  # of the batch, and of a step's trajectories in the queue, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The candidates of one part of a batch."""

    positions: NDArray[np.int64]  # [N] the owner's own numbers of the rows
    priorities: NDArray[np.float64]  # [N] >= 0
    ages: NDArray[np.int64]  # [N] policy versions >= 0


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The rows of a step, in random order; n may be 0."""

    positions: NDArray[np.int64]  # [n] from the pools
    probabilities: NDArray[np.float64]  # [n] of the draw, among the rows of its own part
    table_sizes: NDArray[np.int64]  # [n] rows of that part that could have been drawn
    fresh: NDArray[np.bool_]  # [n] from the fresh pool


@dataclass(frozen=True, kw_only=True)
class SelectionPlan:
    """One mode: its admission, its selectors, its remover; by default a step draws from what it consumes itself, and keeps nothing."""

    signal_only: bool  # admit rows of effective groups with a non-zero advantage only
    fresh: Selector  # draws the fresh part
    fresh_share: float = 1.0  # of a batch, rounded up
    fresh_once: bool = False  # the fresh part holds no row twice; what it leaves open goes to the older part
    older: Selector | None = None  # draws the older part; None: there is none
    remover: Remover = field(default_factory=EndOfStep)

    def admits(self, effective: NDArray[np.bool_], advantages: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Tell which arriving rows are kept.

        Args:
            effective: [N] bool, whether the row's group is effective, that is not uniform in correctness.
            advantages: [N] float.

        Returns:
            [N] bool.
        """
        return effective & (advantages != 0) if self.signal_only else np.ones(len(effective), dtype=bool)

    def draw(self, rng: np.random.Generator, *, fresh: Pool, older: Pool, num_rows: int) -> Draw:
        """Draw the rows of a step; where one part has no candidates the other fills the batch.

        Args:
            rng: moved on by the draw.
            fresh: rows that this step consumes.
            older: rows that earlier steps consumed.
            num_rows: n >= 1.

        Returns:
            n rows, or none when neither part has a candidate.
        """
        num_fresh = self.fresh.num_drawable(fresh.priorities)
        num_older = self.older.num_drawable(older.priorities) if self.older is not None else 0
        quota = num_rows if num_older == 0 else int(np.ceil(self.fresh_share * num_rows))
        if self.fresh_once and num_older > 0:
            quota = min(quota, num_fresh)
        if num_fresh == 0:
            quota = 0
        parts = []
        if quota > 0:
            parts.append(_select(self.fresh, rng, fresh, quota, is_fresh=True))
        if self.older is not None and num_older > 0 and quota < num_rows:
            parts.append(_select(self.older, rng, older, num_rows - quota, is_fresh=False))
        return _shuffled(rng, parts)


def plan_for(mode: ReplayMode, *, priority_exponent: float, age_decay_steps: float, max_age: int) -> SelectionPlan:
    """Look up the plan of a mode.

    Args:
        mode: of the replay.
        priority_exponent: alpha of P ~ |A|^alpha; 1 in the paper.
        age_decay_steps: tau of exp(-age / tau) in policy versions, of mode ``fresh``.
        max_age: in policy versions, of mode ``fresh``; nothing older is drawn.

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
        ),
        ReplayMode.fresh: SelectionPlan(
            signal_only=True,
            fresh=Permutation(),
            fresh_once=True,
            older=Prioritized(exponent=priority_exponent, decay=age_decay_steps),
            remover=MaxAge(max_age=max_age),
        ),
    }
    return plans[ReplayMode(mode)]


def _select(selector: Selector, rng: np.random.Generator, pool: Pool, num: int, *, is_fresh: bool) -> Draw:
    chosen = selector.select(rng, priorities=pool.priorities, ages=pool.ages, num=num)
    return Draw(
        positions=pool.positions[chosen.indices],
        probabilities=chosen.probabilities,
        table_sizes=np.full(num, chosen.table_size, dtype=np.int64),
        fresh=np.full(num, is_fresh),
    )


def _shuffled(rng: np.random.Generator, parts: list[Draw]) -> Draw:
    """Join the parts and mix them, so that every update of a step gets its share of each."""
    empty = Draw(positions=np.empty(0, np.int64), probabilities=np.empty(0), table_sizes=np.empty(0, np.int64), fresh=np.empty(0, bool))
    parts = parts or [empty]
    order = rng.permutation(sum(len(part.positions) for part in parts))
    return Draw(
        positions=np.concatenate([part.positions for part in parts])[order],
        probabilities=np.concatenate([part.probabilities for part in parts])[order],
        table_sizes=np.concatenate([part.table_sizes for part in parts])[order],
        fresh=np.concatenate([part.fresh for part in parts])[order],
    )

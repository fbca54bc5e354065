"""Advantages of the trajectories of one prompt. Pure functions over NumPy; no knowledge of who calls them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

STD_EPSILON = 1e-6  # keeps a nearly uniform group's division finite; far below the spread of any real reward


def group_advantages(rewards: NDArray[np.floating], *, kind: Literal["mean", "std", "leave_one_out"]) -> NDArray[np.float32]:
    """Subtract a group's own baseline from its rewards.

    ``mean`` is A_i = r_i - mean(r), without any division (VL-Rethinker, confirmed by its authors); ``std`` divides that by
    the group's standard deviation (GRPO, arXiv 2402.03300, section 4.1); ``leave_one_out`` takes the mean of the others
    (RLOO, arXiv 2402.14740).

    Args:
        rewards: [G] float, one a trajectory of the same prompt.
        kind: the baseline.

    Returns:
        [G] float32.

    Raises:
        ValueError: for fewer than two rewards, another rank, or an unknown kind.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an advantage needs a group of at least two rewards in one dimension, got shape {values.shape}")
    centred = values - values.mean()
    if kind == "mean":
        result = centred
    elif kind == "std":
        result = centred / (values.std() + STD_EPSILON)
    elif kind == "leave_one_out":
        result = centred * len(values) / (len(values) - 1)
    else:
        raise ValueError(f"unknown advantage kind {kind!r}: mean, std or leave_one_out")
    return result.astype(np.float32)

"""Selection probabilities of selective sample replay. Pure functions over NumPy; no storage, no random numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def selection_probabilities(
    advantages: NDArray[np.floating],
    ages: NDArray[np.integer] | None = None,
    *,
    exponent: float,
    epsilon: float = 0.0,
    decay: float | None = None,
) -> NDArray[np.float64]:
    """P(j) proportional to (|A_j|^alpha + epsilon) exp(-age_j / tau).

    alpha alone is VL-Rethinker's selective sample replay (arXiv 2504.08837, section 3.2), the constant its code's
    guard against a queue of zeros, the decay freshness-aware prioritised replay (arXiv 2604.16918).

    Args:
        advantages: [N] float.
        ages: [N] versions since the sample was rolled out; needed with ``decay``.
        exponent: alpha >= 0; 0 draws uniformly among the samples with a non-zero advantage.
        epsilon: added to every |A|^alpha.
        decay: tau > 0 in versions; None: age plays no part.

    Returns:
        [N] float64 summing to 1.

    Raises:
        ValueError: when shapes disagree, a setting is out of range, or nothing can be selected.
    """
    magnitude = np.abs(np.asarray(advantages, dtype=np.float64))
    if magnitude.ndim != 1 or exponent < 0 or epsilon < 0:
        raise ValueError(f"need [N] advantages, exponent >= 0, epsilon >= 0; got {magnitude.shape}, {exponent}, {epsilon}")
    weights = np.where(magnitude > 0, magnitude**exponent, 0.0) + epsilon
    if decay is not None:
        versions = np.zeros(0) if ages is None else np.asarray(ages, dtype=np.float64)
        if versions.shape != magnitude.shape or decay <= 0:
            raise ValueError(f"age decay needs [N] ages and tau > 0; got ages {versions.shape} for {magnitude.shape}, tau {decay}")
        # relative to the youngest: the same P, and no underflow when everything is old
        weights = weights * np.exp((versions.min(initial=np.inf) - versions) / decay)
    total = weights.sum()
    if not total > 0:
        raise ValueError(f"nothing to select: all {len(magnitude)} weights are zero")
    return weights / total

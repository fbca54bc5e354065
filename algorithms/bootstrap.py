"""Confidence intervals of means over questions by resampling (Efron and Tibshirani, An Introduction to the Bootstrap, 1993)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 2**22  # numbers of one block of resamples, 32 MiB


def stratified_mean(scores: NDArray[np.float64], strata: Sequence[str]) -> float:
    """The mean over strata of the means over their scores.

    Args:
        scores: [N] in [0, 1].
        strata: [N] names; all equal: the plain mean.

    Returns:
        The mean; 0 for no scores.

    Raises:
        ValueError: when the lengths differ.
    """
    groups = _groups(scores, strata)
    return float(np.mean([group.mean() for group in groups])) if groups else 0.0


def bootstrap_interval(
    scores: NDArray[np.float64], strata: Sequence[str], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """The percentile interval of stratified_mean, questions resampled within their strata.

    Args:
        scores: [N] in [0, 1].
        strata: [N] names.
        confidence: such as 0.95.
        resamples: how many.
        seed: the same one gives the same interval.

    Returns:
        Lower and upper bound; (0, 0) for no scores.

    Raises:
        ValueError: when the lengths differ.
    """
    groups = _groups(scores, strata)
    if not groups:
        return 0.0, 0.0
    generator = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for group in groups:
        means += _resampled_means(group, resamples, generator) / len(groups)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _groups(scores: NDArray[np.float64], strata: Sequence[str]) -> list[NDArray[np.float64]]:
    if len(scores) != len(strata):
        raise ValueError(f"{len(scores)} scores for {len(strata)} strata")
    names = np.asarray(strata, dtype=object)
    return [np.asarray(scores, dtype=np.float64)[names == name] for name in sorted(set(strata))]


def _resampled_means(group: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """[resamples] means of as many draws with replacement as the group has scores."""
    block = max(1, _DRAWS_AT_ONCE // len(group))
    blocks = [
        group[generator.integers(0, len(group), (min(block, resamples - start), len(group)))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    return np.concatenate(blocks)

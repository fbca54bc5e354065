import numpy as np
import pytest
from scipy.stats import bootstrap

from algorithms.bootstrap import bootstrap_interval, stratified_mean

HALF = np.array([1.0, 0.0] * 50)


def test_the_mean_over_strata_counts_each_stratum_once() -> None:
    assert stratified_mean(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]) == 0.5
    assert stratified_mean(np.array([1.0, 1.0, 1.0, 0.0]), [""] * 4) == 0.75
    assert stratified_mean(np.array([]), []) == 0.0


def test_one_stratum_agrees_with_scipy() -> None:
    scores = np.random.default_rng(0).random(300)
    ours = bootstrap_interval(scores, [""] * 300, confidence=0.95, resamples=4000, seed=0)
    theirs = bootstrap((scores,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        scores = (generator.random(80) < 0.3).astype(float)
        low, high = bootstrap_interval(scores, [""] * 80, confidence=0.9, resamples=400, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.82 <= covered / 200 <= 0.97


def test_strata_are_resampled_within_themselves() -> None:
    """Two strata without any spread of their own: the interval is a point, though the scores differ."""
    scores, strata = np.array([1.0] * 10 + [0.0] * 90), ["a"] * 10 + ["b"] * 90
    assert bootstrap_interval(scores, strata, confidence=0.95, resamples=200, seed=0) == (0.5, 0.5)


def test_the_seed_decides_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"confidence": 0.95, "resamples": 500, "seed": 7}
    first = bootstrap_interval(HALF, [""] * 100, **settings)
    assert first == bootstrap_interval(HALF, [""] * 100, **settings)
    assert first != bootstrap_interval(HALF, [""] * 100, **settings | {"seed": 8})
    monkeypatch.setattr("algorithms.bootstrap._DRAWS_AT_ONCE", 1000)
    low, high = bootstrap_interval(HALF, [""] * 100, **settings)
    assert 0.38 <= low <= 0.43 and 0.57 <= high <= 0.62


def test_empty_and_unequal() -> None:
    assert bootstrap_interval(np.array([]), [], confidence=0.95, resamples=10, seed=0) == (0.0, 0.0)
    with pytest.raises(ValueError, match="2 scores for 1 strata"):
        bootstrap_interval(np.array([1.0, 0.0]), ["a"], confidence=0.95, resamples=10, seed=0)

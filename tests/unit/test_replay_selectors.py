"""Selectors: empirical frequencies against P, by chi-square, and their edges."""

import numpy as np
import pytest
from scipy.stats import chisquare

from replay.selectors import Permutation, Prioritized

DRAWS = 200_000
SMALLEST_P_VALUE = 1e-4  # seeds are fixed, so a failure is a change and not bad luck
PRIORITIES = np.array([0.5, 0.25, 0.0, 1.0, 0.75, 0.1, 0.0, 0.33])
AGES = np.array([0, 1, 2, 3, 8, 13, 0, 40])

WEIGHTS = {
    "alpha 1": (Prioritized(exponent=1.0), PRIORITIES),
    "alpha 0.6": (Prioritized(exponent=0.6), np.where(PRIORITIES > 0, PRIORITIES**0.6, 0)),
    "alpha 0": (Prioritized(exponent=0.0), (PRIORITIES > 0).astype(float)),
    "alpha 2": (Prioritized(exponent=2.0), PRIORITIES**2),
    "epsilon": (Prioritized(exponent=1.0, epsilon=0.05), PRIORITIES + 0.05),
    "age decay": (Prioritized(exponent=1.0, decay=5.0), PRIORITIES * np.exp(-AGES / 5.0)),
    "all": (
        Prioritized(exponent=0.6, epsilon=0.01, decay=20.0),
        (np.where(PRIORITIES > 0, PRIORITIES**0.6, 0) + 0.01) * np.exp(-AGES / 20),
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_prioritized_draws_follow_p(case):
    selector, weights = WEIGHTS[case]
    expected = weights / weights.sum()
    selection = selector.select(np.random.default_rng(1), priorities=PRIORITIES, ages=AGES, num=DRAWS)
    counts = np.bincount(selection.indices, minlength=len(weights))
    possible = weights > 0
    assert counts[~possible].sum() == 0  # weight 0 is never drawn
    assert chisquare(counts[possible], DRAWS * expected[possible]).pvalue > SMALLEST_P_VALUE
    np.testing.assert_allclose(selection.probabilities, expected[selection.indices])
    assert set(selection.table_sizes) == {possible.sum()}


def test_chi_square_notices_a_wrong_exponent():
    weights = PRIORITIES[PRIORITIES > 0]
    drawn = Prioritized(exponent=0.9).select(np.random.default_rng(1), priorities=weights, ages=np.zeros(6, int), num=DRAWS)
    assert chisquare(np.bincount(drawn.indices), DRAWS * weights / weights.sum()).pvalue < SMALLEST_P_VALUE


def test_prioritized_follows_p_over_a_large_table():
    rng = np.random.default_rng(2)
    priorities, ages = rng.random(5_000), rng.integers(0, 9, 5_000)
    weights = priorities * np.exp(-ages / 4)
    selection = Prioritized(exponent=1.0, decay=4.0).select(rng, priorities=priorities, ages=ages, num=2_000_000)
    counts = np.bincount(selection.indices, minlength=5_000)
    bins = np.argsort(weights) // 50  # 5,000 rows in 100 bins, mixed
    expected = np.bincount(bins, weights=weights / weights.sum()) * 2_000_000
    assert chisquare(np.bincount(bins, weights=counts), expected).pvalue > SMALLEST_P_VALUE


@pytest.mark.parametrize("num", [1, 7, 8, 20, 80])
def test_permutation_repeats_evenly(num):
    selection = Permutation().select(np.random.default_rng(3), priorities=np.zeros(8), ages=np.zeros(8, int), num=num)
    counts = np.bincount(selection.indices, minlength=8)
    assert counts.sum() == num
    assert counts.max() - counts.min() <= 1
    assert set(selection.table_sizes) == {8}
    np.testing.assert_array_equal(selection.probabilities, 1 / 8)


def test_permutation_takes_every_row_first_equally_often():
    rng = np.random.default_rng(4)
    first = [Permutation().select(rng, priorities=np.zeros(5), ages=np.zeros(5, int), num=3).indices for _ in range(40_000)]
    counts = np.bincount(np.concatenate(first))  # 3 of 5 places: each row 24,000 times
    spread = 40_000 * 0.6 * 0.4  # of a row's count; rows are drawn without replacement, so the sum of squares is scaled by 4 / 5
    assert ((counts - 24_000) ** 2).sum() / spread * 4 / 5 < 23.5  # chi-square of 4 degrees of freedom: p = 1e-4


def test_what_can_be_drawn():
    assert Permutation().num_drawable(PRIORITIES) == 8
    assert Prioritized(exponent=1.0).num_drawable(PRIORITIES) == 6
    assert Prioritized(exponent=1.0, epsilon=1e-4).num_drawable(PRIORITIES) == 8
    assert Prioritized(exponent=1.0).num_drawable(np.empty(0)) == 0


def test_nothing_to_draw_is_an_error():
    nothing = {"priorities": np.empty(0), "ages": np.empty(0, int), "num": 3}
    with pytest.raises(ValueError, match="no candidates"):
        Permutation().select(np.random.default_rng(0), **nothing)
    with pytest.raises(ValueError, match="nothing to select"):
        Prioritized(exponent=1.0).select(np.random.default_rng(0), priorities=np.zeros(4), ages=np.zeros(4, int), num=3)

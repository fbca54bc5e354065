"""The ratio of draws to inserts, as Reverb defines it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.ratio import SampleToInsertRatio


def test_below_min_size_every_insert_goes_and_no_sample():
    ratio = SampleToInsertRatio(min_size=100, samples_per_insert=2.0, error=10.0)
    assert ratio.may_insert(100, size=0) and not ratio.may_sample(1, size=99)
    ratio = SampleToInsertRatio(min_size=3)  # no rule but min_size
    assert not ratio.may_sample(1, size=2) and ratio.may_sample(10**9, size=3) and ratio.may_insert(10**9, size=10**9)


def test_the_budget_is_counted_from_min_size_on():
    # by hand: 100 inserted, so the error is 200 - sampled, and must stay within 200 +- 10
    ratio = SampleToInsertRatio(min_size=100, samples_per_insert=2.0, error=10.0, inserted=100)
    assert ratio.may_sample(10, size=100) and not ratio.may_sample(11, size=100)
    assert ratio.may_insert(5, size=100) and not ratio.may_insert(6, size=100)
    ratio.sampled = 8
    assert ratio.may_sample(2, size=100) and not ratio.may_sample(3, size=100)
    assert ratio.may_insert(9, size=100) and not ratio.may_insert(10, size=100)


def test_a_call_larger_than_the_budget_is_known():
    ratio = SampleToInsertRatio(min_size=4, samples_per_insert=2.0, error=10.0)
    assert not ratio.never(inserts=10, samples=0) and ratio.never(inserts=11)
    assert not ratio.never(samples=20) and ratio.never(samples=21)
    assert not SampleToInsertRatio().never(inserts=10**9, samples=10**9)
    assert "replay.samples_per_insert=2 with an error of 10" in str(ratio)


@given(st.floats(0.1, 8.0), st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_ratio_stays_within_the_budget_and_one_door_is_always_open(per_insert, min_size, rows, draws, wishes):
    error = (rows * per_insert + draws) / 2
    ratio, size = SampleToInsertRatio(min_size=min_size, samples_per_insert=per_insert, error=error), 0
    for wish in wishes:
        may_insert, may_sample = ratio.may_insert(rows, size=size), ratio.may_sample(draws, size=size)
        assert may_insert or may_sample
        if (wish and may_insert) or not may_sample:
            ratio.inserted += rows
            size += rows
        else:
            ratio.sampled += draws
        if size >= min_size:
            budget = abs(ratio.inserted * per_insert - ratio.sampled - min_size * per_insert)
            assert budget <= error + rows * per_insert * (size - rows < min_size) + 1e-9  # the insert that crosses min_size goes anyway
    assert ratio.sampled == pytest.approx(ratio.inserted * per_insert, abs=2 * error + 2 * (min_size + rows) * per_insert)

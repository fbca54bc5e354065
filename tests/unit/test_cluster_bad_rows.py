"""Bad rows: named once, counted, and the end of a run past the limit."""

import logging

import pytest

from cluster.bad_rows import JUDGE_AFTER, BadRows, TooManyBadRows


def test_each_row_is_named_once(caplog):
    rows = BadRows(max_fraction=0.5)
    with caplog.at_level(logging.WARNING):
        rows.report([("q1", "corrupt image"), ("q2", "no answer")], handed_out=10)
        rows.report([("q1", "corrupt image")], handed_out=20)
    assert rows.count == 2
    assert [record.message for record in caplog.records] == ["skipped q1: corrupt image", "skipped q2: no answer"]


def test_too_many_end_the_run_with_examples():
    rows = BadRows(max_fraction=0.02)
    with pytest.raises(TooManyBadRows, match=r"2 of 64 prompts.*max_bad_fraction=0\.02.*q1: corrupt"):
        rows.report([("q1", "corrupt"), ("q2", "corrupt")], handed_out=JUDGE_AFTER)


def test_a_few_at_the_start_mean_nothing_yet():
    BadRows(max_fraction=0.02).report([("q1", "corrupt")], handed_out=1)

"""How much one call should carry: never so much that inserts and draws wait for each other."""

import pytest

from conf.schema import ReplayConfig, ReplayMode
from replay.ratio import SampleToInsertRatio
from replay.requests import CallSizes


@pytest.mark.parametrize(("per_insert", "error"), [(1.0, 64.0), (4.0, 100.0), (0.25, 50.0), (3.0, 7.0)])
def test_calls_of_the_largest_sizes_never_shut_both_doors(per_insert, error):
    config = ReplayConfig(mode=ReplayMode.prioritized, min_size=10, samples_per_insert=per_insert, samples_per_insert_error=error)
    sizes = CallSizes.largest(config)
    ratio = SampleToInsertRatio(min_size=10, samples_per_insert=per_insert, error=error, inserted=10)
    calls = {"insert": 0, "sample": 0}
    for i in range(5000):
        may = {"insert": ratio.may_insert(sizes.inserts, size=10), "sample": ratio.may_sample(sizes.samples, size=10)}
        assert any(may.values())
        kind = ("insert", "sample")[i * i % 3 % 2]
        kind = kind if may[kind] else ("sample" if kind == "insert" else "insert")
        calls[kind] += 1
        ratio.inserted += sizes.inserts if kind == "insert" else 0
        ratio.sampled += sizes.samples if kind == "sample" else 0
    assert min(calls.values()) > 100


def test_without_a_ratio_the_table_alone_bounds_inserts():
    sizes = CallSizes.largest(ReplayConfig(max_trajectories=800))
    assert (sizes.inserts, sizes.samples) == (100, 2**31)
    assert CallSizes.largest(ReplayConfig(max_trajectories=3)).inserts == 1

"""Micro-batches and shards: every row once, within bounds, balanced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.batching import balanced_shards, split_microbatches


def test_microbatches_count_padding():
    # longest first: 9 alone (2 x 9 > 10); 5 and 3 pad to 2 x 5 = 10; 1 alone
    assert split_microbatches([5, 3, 9, 1], max_tokens=10) == [[2], [0, 1], [3]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 100))
def test_every_row_is_in_one_microbatch_within_the_bound(lengths, max_tokens):
    batches = split_microbatches(lengths, max_tokens=max_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens


def test_shards_balance_tokens_and_keep_prompts_together():
    # group tokens: a 14, b 3, c 9 -> a | c, b
    assert balanced_shards([5, 3, 9, 9], ["a", "b", "a", "c"], num_shards=2) == [[0, 2], [1, 3]]


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("abcdefgh")), max_size=60), st.integers(1, 5))
def test_shards_hold_every_row_once_and_never_split_a_prompt(rows, num_shards):
    lengths, groups = [length for length, _ in rows], [group for _, group in rows]
    shards = balanced_shards(lengths, groups, num_shards=num_shards)
    assert len(shards) == num_shards and sorted(row for shard in shards for row in shard) == list(range(len(rows)))
    owners = [{groups[row] for row in shard} for shard in shards]
    assert sum(len(owner) for owner in owners) == len(set(groups))
    loads = [sum(lengths[row] for row in shard) for shard in shards]
    biggest = max((sum(length for length, g in rows if g == group) for group in set(groups)), default=0)
    assert max(loads) - min(loads) <= biggest


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="max_tokens"):
        split_microbatches([1], max_tokens=0)
    with pytest.raises(ValueError, match="2 lengths for 1 groups"):
        balanced_shards([1, 2], ["a"], num_shards=1)

"""What the process of the replay takes of the system for the rows that it holds."""

import multiprocessing

import pytest

from benchmarks.replay_costs import memory
from conf.schema import ReplayRemover


@pytest.mark.parametrize("remover", [ReplayRemover.oldest, ReplayRemover.lowest_priority])
def test_resident_memory_is_at_most_15_percent_above_the_rows(remover):
    with multiprocessing.get_context("spawn").Pool(1) as process:  # of its own: whatever ran before has left memory behind
        _, over_rows, _ = process.apply_async(memory, (60_000, 256, remover)).get(timeout=300)
    assert -0.05 < over_rows < 0.15

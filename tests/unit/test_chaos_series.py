"""The series of the chaos runs: seeded, and never far from having hurt everything equally often."""

from __future__ import annotations

import random
from collections import Counter

from tests.chaos.__main__ import draw
from tests.chaos.faults import Fault, Injection
from tests.chaos.run import ChaosRun


def nothing(run: ChaosRun, rng: random.Random) -> Injection:
    raise AssertionError("a series is only drawn here")


TABLE = [Fault(name=f"fault {n}", inject=nothing, times=1 + n % 2, timeout_s=1.0) for n in range(6)]
ROUND = sum(fault.times for fault in TABLE)


def test_each_round_has_every_fault_as_often_as_it_says():
    series = draw(TABLE, count=5 * ROUND, seed=3)
    for start in range(0, len(series), ROUND):
        assert Counter(fault.name for fault in series[start : start + ROUND]) == {fault.name: fault.times for fault in TABLE}


def test_a_longer_series_of_a_seed_begins_with_the_shorter_one():
    assert draw(TABLE, count=50, seed=3)[:20] == draw(TABLE, count=20, seed=3)


def test_rounds_and_seeds_differ_in_their_order():
    series = draw(TABLE, count=2 * ROUND, seed=3)
    assert series[:ROUND] != series[ROUND:]
    assert series != draw(TABLE, count=2 * ROUND, seed=4)
    assert draw([], count=3, seed=3) == []

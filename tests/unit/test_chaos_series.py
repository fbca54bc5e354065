"""The series of the chaos runs: seeded, never far from having hurt everything equally often, and told fault by fault."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos import disk
from tests.chaos.__main__ import draw, inject
from tests.chaos.accounting import Accepted, Acknowledged, Verdict
from tests.chaos.cluster import PrivateCluster
from tests.chaos.faults import Fault, Injection
from tests.chaos.report import by_fault, table
from tests.chaos.rollout_faults import replaced
from tests.chaos.run import ChaosRun


def nothing(run: ChaosRun, rng: random.Random) -> Injection:
    raise AssertionError("a series is only drawn here")


TABLE = [Fault(name=f"fault {n}", inject=nothing, times=1 + n % 2, timeout_s=1.0) for n in range(6)]
ROUND = sum(fault.times for fault in TABLE)


def test_each_round_has_every_fault_as_often_as_it_says():
    series = draw(TABLE, count=5 * ROUND, seed=3)
    for start in range(0, len(series), ROUND):
        assert Counter(fault.name for fault in series[start : start + ROUND]) == {fault.name: fault.times for fault in TABLE}
        assert {fault.name for fault in series[start : start + len(TABLE)]} == {fault.name for fault in TABLE}


def test_a_longer_series_of_a_seed_begins_with_the_shorter_one():
    assert draw(TABLE, count=50, seed=3)[:20] == draw(TABLE, count=20, seed=3)


def test_rounds_and_seeds_differ_in_their_order():
    series = draw(TABLE, count=2 * ROUND, seed=3)
    assert series[:ROUND] != series[ROUND:]
    assert series != draw(TABLE, count=2 * ROUND, seed=4)
    assert draw([], count=3, seed=3) == []


def test_what_a_step_lost_is_told_of_the_fault_before_its_end():
    steps = {"a": 3, "b": 7, "a driver": 5}  # the run went back from step 9 to 5 with the last one
    rows = [{"fault": name, "step": step, "recovered": name != "b", "seconds": 2.0} for name, step in steps.items()]
    assert by_fault(rows, [1, 3, 4, 5, 6, 8]) == {"": 2, "a": 2, "a driver": 2}
    assert by_fault(rows[:2], [7, 8, 9]) == {"a": 1, "b": 2}
    verdict = Verdict(
        steps=9, acknowledged=90, consumed=88, waiting=0, lost=("x", "y"), duplicated=("z",), problems=("step 9 is short",),
        lost_in=(4, 6), duplicated_in=(5,),
    )  # fmt: skip
    told = table(rows, verdict).splitlines()
    assert "| a | 1 | 1 | 2.0 (2.0) | 1 | 1 |" in told and "| b | 1 | 0 | - | 0 | 0 |" in told
    assert "| a driver | 1 | 1 | 2.0 (2.0) | 1 | 0 |" in told and "| all | 3 | 2 | | 2 | 1 |" in told
    assert told[-1] == "step 9 is short"


class QuietRun:
    """A run as far as a fault looks at it: processes by role, and the lines of its log."""

    def __init__(self, **roles: list[int]) -> None:
        self.roles, self.log = roles, ["rollout actor 0 joined"]

    def processes(self, role: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.roles[role]]

    def said(self, what: str) -> int:
        return sum(what in line for line in self.log)


def test_a_rollout_actor_is_got_over_only_when_its_successor_serves():
    run = QuietRun(rollout=[1, 2])
    before = run.processes("rollout")
    injection = replaced(run, before, before[:1], "rollout 1")  # type: ignore[arg-type]
    assert injection.hit == "rollout 1" and not injection.whole()
    run.roles["rollout"] = [2, 3]
    assert not injection.whole(), "it has started, and has not joined"
    run.log.append("rollout 0 is healthy: rollout actor 2 joined")
    assert injection.whole()
    run.roles["rollout"] = [1, 2]
    assert not injection.whole(), "the one that was hit is still there"


def test_a_slice_that_does_not_come_to_start_leaves_the_note_of_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    note = Acknowledged(groups={"p1@0": Accepted(turn=0, contents={"p1@0/0": 7})}, taken_back=2)
    note.write(tmp_path / "acknowledged.json")
    monkeypatch.setattr(disk, "_mounted", lambda path: False)

    def fails(cluster: PrivateCluster) -> None:
        raise RuntimeError("no cluster today")

    monkeypatch.setattr(PrivateCluster, "start", fails)
    with pytest.raises(RuntimeError, match="no cluster today"):
        inject([], folder=tmp_path, seed=1)
    assert Acknowledged.read(tmp_path / "acknowledged.json") == note

"""The count of the chaos runs: it must see a lost, a changed and a doubled trajectory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from algorithms.schema import to_record_batch
from conf.schema import ReplayConfig, ReplayMode
from replay import durable
from replay.archive import TrajectoryArchive
from replay.buffer import ReplayBuffer
from replay.durable import DurableReplay
from replay.journal import JournalError
from tests.chaos.accounting import Acknowledged, judge
from tests.fakes import make_group

PER_STEP = 2


@pytest.fixture(params=[0, durable.ROWS_FIRST_BYTES], ids=["rows first", "rows within"])
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Two steps of two groups, and a group that waits for the third."""
    monkeypatch.setattr(durable, "ROWS_FIRST_BYTES", request.param)
    replay = DurableReplay(ReplayConfig(mode=ReplayMode.none), seed=0, folder=tmp_path / "journal")
    archive = TrajectoryArchive(tmp_path / "trajectories")
    rows = []
    for turn in range(5):
        group = make_group(f"p{turn}", rewards=[1, 0])
        replay.insert(to_record_batch(group.trajectories), {group.group_id: turn})
    for step in range(2):
        archive.write(step, replay.sample(batch_size=4, policy_version=step, num_groups=PER_STEP).consumed)
        rows.append(json.dumps({"step": step + 1}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    acknowledged = Acknowledged()
    acknowledged.read_journal(tmp_path / "journal")
    return tmp_path, acknowledged, archive


def test_a_clean_run(run):
    folder, acknowledged, _ = run
    verdict = judge(folder, acknowledged, prompts_per_step=PER_STEP)
    assert verdict.clean and (verdict.steps, verdict.acknowledged, verdict.consumed, verdict.waiting) == (2, 10, 8, 2)


def test_rows_that_are_gone_have_left_and_rows_that_are_damaged_are_told(run):
    folder, _, _ = run
    for path in (folder / "journal").glob("rows-*"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(JournalError, match=f"{path.name} is damaged"):
            Acknowledged().read_journal(folder / "journal")
        path.unlink()
        again = Acknowledged()
        again.read_journal(folder / "journal")
        assert not again.groups


def test_what_was_acknowledged_and_not_consumed_is_lost(run):
    folder, acknowledged, archive = run
    archive.write(1, [to_record_batch(make_group("p2", rewards=[1, 0]).trajectories)])  # p3 is missing
    verdict = judge(folder, acknowledged, prompts_per_step=PER_STEP)
    assert set(verdict.lost) == {"p3@0/0", "p3@0/1"} and verdict.problems and not verdict.clean
    assert set(verdict.lost_in) == {3 // PER_STEP + 1}


def test_other_tokens_than_were_acknowledged_are_a_loss(run):
    folder, acknowledged, archive = run
    others = make_group("p3", rewards=[1, 0], response_tokens=7)
    archive.write(1, [to_record_batch([*make_group("p2", rewards=[1, 0]).trajectories, *others.trajectories])])
    assert set(judge(folder, acknowledged, prompts_per_step=PER_STEP).lost) == {"p3@0/0", "p3@0/1"}


def test_what_two_steps_consume_is_doubled(run):
    folder, acknowledged, archive = run
    groups = [make_group(name, rewards=[1, 0]).trajectories for name in ("p0", "p2", "p3")]
    archive.write(1, [to_record_batch([trajectory for group in groups for trajectory in group])])
    verdict = judge(folder, acknowledged, prompts_per_step=PER_STEP)
    assert set(verdict.duplicated) == {"p0@0/0", "p0@0/1"} and not verdict.clean
    assert len(verdict.duplicated_in) == 2 and set(verdict.duplicated_in) <= set(range(1, verdict.steps + 1))


def test_a_step_that_stands_twice_or_not_at_all_is_told(run):
    folder, acknowledged, _ = run
    (folder / "metrics.jsonl").write_text('{"step": 2}\n{"step": 2}\n')
    problems = judge(folder, acknowledged, prompts_per_step=PER_STEP).problems
    assert any("2 times" in problem for problem in problems) and any("step 1 is missing" in problem for problem in problems)


def test_turns_that_a_resumed_driver_does_again_are_not_lost(run):
    folder, acknowledged, _ = run
    ReplayBuffer(ReplayConfig(mode=ReplayMode.none), seed=0).snapshot(folder / "checkpoint" / "replay")
    acknowledged.driver_resumed(2, folder / "checkpoint")
    assert acknowledged.taken_back == 6 and set(acknowledged.groups) == {"p0@0", "p1@0"}
    acknowledged.write(folder / "kept.json")
    assert Acknowledged.read(folder / "kept.json") == acknowledged


@pytest.mark.parametrize("seen", [True, False])
def test_a_group_that_waits_in_the_checkpoint_stays_acknowledged(run, seen: bool):
    """It is not rolled out again, so the new journal has no record of it; nor has the old one, if it was compacted in time."""
    folder, acknowledged, _ = run
    buffer = ReplayBuffer(ReplayConfig(mode=ReplayMode.none), seed=0)
    buffer.insert(to_record_batch(make_group("p3", rewards=[1, 0]).trajectories), {"p3@0": 3})
    buffer.snapshot(folder / "checkpoint" / "replay")
    before = acknowledged.groups["p3@0"] if seen else acknowledged.groups.pop("p3@0")
    acknowledged.driver_resumed(2, folder / "checkpoint")
    assert set(acknowledged.groups) == {"p0@0", "p1@0", "p3@0"} and acknowledged.groups["p3@0"] == before
    assert acknowledged.taken_back == 4

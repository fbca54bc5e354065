"""Snapshots: draws go on as if nothing had happened, and damage is told, never read."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from algorithms.schema import to_record_batch
from conf.schema import ReplayConfig, ReplayMode
from replay import snapshot as snapshot_module
from replay.buffer import ReplayBuffer, ReplayFullError
from replay.snapshot import SNAPSHOT_SCHEMA, SnapshotError
from tests.fakes import make_group


def make_buffer(mode="fresh", *, seed=0, **settings):
    return ReplayBuffer(ReplayConfig(mode=ReplayMode(mode), **settings), seed=seed)


def insert(buffer, step, num_groups=6):
    groups = [make_group(f"p{i}", visit=step, rewards=[1, 0, i % 2], version=step, response_tokens=1 + i) for i in range(num_groups)]
    return buffer.insert(to_record_batch([trajectory for group in groups for trajectory in group.trajectories]))


def step_of(buffer, step):
    insert(buffer, step)
    drawn = buffer.sample(num_updates=2, batch_size=12, num_shards=2, policy_version=step, num_groups=5)  # one group a step stays behind
    buffer.update_priorities(drawn.shards[0]["key"].to_numpy()[:3], np.array([0.1, 0.2, 0.3]))
    return drawn


@pytest.mark.parametrize("mode", ReplayMode)
def test_draws_after_a_restore_equal_those_of_an_uninterrupted_run(mode, tmp_path):
    straight, broken = make_buffer(mode, max_age=3, max_trajectories=60), make_buffer(mode, max_age=3, max_trajectories=60)
    for step in range(4):
        step_of(straight, step)
        step_of(broken, step)
    broken.snapshot(tmp_path)
    restored = make_buffer(mode, max_age=3, max_trajectories=60, seed=99)  # its own seed must not matter
    restored.restore(tmp_path)
    assert {**restored.stats(), "batches": 0, "bytes": 0} == {**straight.stats(), "batches": 0, "bytes": 0}
    assert insert(restored, 3).groups == 0  # a group from before the snapshot, sent again, is still known
    insert(straight, 3)
    for step in range(4, 9):
        expected, found = step_of(straight, step), step_of(restored, step)
        assert [shard.equals(other) for shard, other in zip(expected.shards, found.shards, strict=True)] == [True, True]
        sizes = ("replay/batches", "replay/bytes")  # a restored storage packs rows anew
        assert {k: v for k, v in expected.stats.items() if k not in sizes} == {k: v for k, v in found.stats.items() if k not in sizes}


def test_an_empty_buffer_survives(tmp_path):
    make_buffer().snapshot(tmp_path)
    restored = make_buffer()
    restored.restore(tmp_path)
    assert (len(restored), restored.ready_groups) == (0, 0)


def test_the_rows_can_be_opened_with_pyarrow(tmp_path):
    buffer = make_buffer(max_age=99)
    for step in range(30):
        insert(buffer, step, num_groups=18)
    buffer.sample(num_updates=1, batch_size=8, num_shards=1, policy_version=30, num_groups=500)
    buffer.snapshot(tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    with pa.ipc.open_file(str(path)) as reader:
        table = reader.read_all()
    assert table.schema.equals(SNAPSHOT_SCHEMA, check_metadata=True)
    assert table.num_rows == len(buffer)
    stored = table.filter(pc.greater_equal(table["key"], 0))
    assert stored["key"].to_pylist() == list(range(buffer.stats()["size"]))
    np.testing.assert_array_equal(stored["priority"].to_numpy(), np.abs(stored["advantage"].to_numpy()))
    assert set(table["group_id"].to_pylist()) - set(stored["group_id"].to_pylist())  # those that wait are behind them, without a key


def test_a_snapshot_does_not_change_the_buffer(tmp_path):
    one, other = make_buffer(), make_buffer()
    for step in range(3):
        one.snapshot(tmp_path)
        assert all(a.equals(b) for a, b in zip(step_of(one, step).shards, step_of(other, step).shards, strict=True))


def test_a_new_snapshot_replaces_the_old_one(tmp_path):
    buffer = make_buffer()
    for step in range(3):
        step_of(buffer, step)
        buffer.snapshot(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
    restored = make_buffer()
    restored.restore(tmp_path)
    assert restored.stats()["inserted"] == buffer.stats()["inserted"]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_write_that_fails_leaves_the_old_snapshot(fails_at, tmp_path, monkeypatch):
    buffer = make_buffer()
    step_of(buffer, 0)
    buffer.snapshot(tmp_path)
    before = buffer.stats()["inserted"]
    step_of(buffer, 1)
    calls = []

    def full_disk(path, sync=snapshot_module.sync_path):
        calls.append(path)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(snapshot_module, "sync_path", full_disk)
    with pytest.raises(OSError, match="No space left"):
        buffer.snapshot(tmp_path)
    assert not list(tmp_path.glob(".*"))
    restored = make_buffer()
    restored.restore(tmp_path)
    assert restored.stats()["inserted"] == before
    monkeypatch.undo()
    buffer.snapshot(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # nothing is left of the failed one


def damage(path, kind):
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("name", ["state.json", "trajectories-*.arrow"])
@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "bit"])
def test_damage_is_told_with_the_file_and_changes_nothing(name, kind, tmp_path):
    buffer = make_buffer()
    step_of(buffer, 0)
    buffer.snapshot(tmp_path)
    (path,) = tmp_path.glob(name)
    damage(path, kind)
    other = make_buffer()
    insert(other, 0)
    with pytest.raises(SnapshotError, match=path.name):
        other.restore(tmp_path)
    assert (other.ready_groups, other.stats()["inserted"]) == (6, 18)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(SnapshotError, match=r"no replay snapshot: .*state.json is missing"):
        make_buffer().restore(tmp_path / "nowhere")


def rewrite(folder, change):
    """Change a snapshot's JSON and sign it anew, as another version of the program would have."""
    path = folder / "state.json"
    content = json.loads(path.read_text())
    change(content)
    content["sha256"] = snapshot_module._text_digest(snapshot_module._body_text(content["body"]))
    path.write_text(json.dumps(content))


def test_other_formats_and_schemas_are_told(tmp_path, monkeypatch):
    buffer = make_buffer()
    step_of(buffer, 0)
    buffer.snapshot(tmp_path)
    rewrite(tmp_path, lambda content: content.update(format=7))
    with pytest.raises(SnapshotError, match="of format 7, this version reads 4"):
        make_buffer().restore(tmp_path)
    older = SNAPSHOT_SCHEMA.with_metadata({b"rethinker.schema": b"trajectory", b"rethinker.schema_version": b"0"})
    monkeypatch.setattr(snapshot_module, "SNAPSHOT_SCHEMA", older)
    buffer.snapshot(tmp_path)
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match="found version 0"):
        make_buffer().restore(tmp_path)


def test_a_row_count_that_does_not_fit_is_told(tmp_path):
    buffer = make_buffer()
    step_of(buffer, 0)
    buffer.snapshot(tmp_path)
    rewrite(tmp_path, lambda content: content["body"].update(num_rows=1))
    with pytest.raises(SnapshotError, match="says 1"):
        make_buffer().restore(tmp_path)


def test_another_mode_is_told(tmp_path):
    make_buffer("fresh").snapshot(tmp_path)
    with pytest.raises(SnapshotError, match=r"replay.mode=fresh, this run has episode"):
        make_buffer("episode").restore(tmp_path)


def test_a_smaller_capacity_lets_the_oldest_go_but_never_rows_that_wait(tmp_path):
    buffer = make_buffer()
    step_of(buffer, 0)
    waiting = len(buffer) - buffer.stats()["size"]
    buffer.snapshot(tmp_path)
    smaller = make_buffer(max_trajectories=waiting + 1)
    smaller.restore(tmp_path)
    assert len(smaller) == waiting + 1
    too_small = make_buffer(max_trajectories=waiting - 1)
    with pytest.raises(ReplayFullError, match="can't hold the snapshot's"):
        too_small.restore(tmp_path)
    assert len(too_small) == 0


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make_buffer().snapshot(os.fspath(tmp_path / "file"))

"""A full disk: inserts and draws wait, the archive keeps what it has no room for, and metrics.jsonl never holds half a line."""

from __future__ import annotations

import asyncio
import errno
import json
import os

import pyarrow as pa
import pytest

from algorithms.schema import to_record_batch
from cluster.metrics import JsonLines, MetricSinks
from replay import archive as archive_module
from replay import full_disk
from replay.archive import TrajectoryArchive
from replay.full_disk import when_there_is_room
from tests.fakes import make_group

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(full_disk, "RETRY_S", 0.0)


def attempts(failures):
    """An attempt that fails in these ways, one after the other, and then succeeds."""

    async def attempt():
        if failures:
            raise failures.pop(0)
        return "done"

    return attempt


def test_what_finds_no_room_is_done_when_there_is():
    assert asyncio.run(when_there_is_room(attempts([FULL, FULL]), 60.0, "3 trajectories")) == "done"


def test_a_disk_that_stays_full_is_an_error_in_the_end():
    with pytest.raises(OSError, match="No space"):
        asyncio.run(when_there_is_room(attempts([FULL] * 10**6), 0.05, "3 trajectories"))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), TimeoutError("replay waited 1 s"), ValueError("another schema")])
def test_other_errors_are_not_waited_for(error):
    with pytest.raises(type(error)):
        asyncio.run(when_there_is_room(attempts([error]), 60.0, "3 trajectories"))


def rows_of(step: int) -> list[pa.RecordBatch]:
    return [to_record_batch(make_group(f"p{step}", rewards=[1, 0]).trajectories)]


def test_the_archive_writes_later_what_it_had_no_room_for(tmp_path, monkeypatch):
    archive, write = TrajectoryArchive(tmp_path), TrajectoryArchive.write
    archive.write_or_keep(0, rows_of(0))
    monkeypatch.setattr(TrajectoryArchive, "write", lambda *_: (_ for _ in ()).throw(FULL))
    for step in (1, 2):
        archive.write_or_keep(step, rows_of(step))
    monkeypatch.setattr(TrajectoryArchive, "write", write)
    archive.write_or_keep(3, rows_of(3))
    found = {path.name: pa.ipc.open_file(path).read_all()["prompt_id"][0].as_py() for path in tmp_path.glob("*.arrow")}
    assert found == {f"step-{step + 1:06d}.arrow": f"p{step}" for step in range(4)}


def test_the_archive_keeps_no_more_than_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "KEPT_STEPS", 2)
    archive, write = TrajectoryArchive(tmp_path), TrajectoryArchive.write
    monkeypatch.setattr(TrajectoryArchive, "write", lambda *_: (_ for _ in ()).throw(FULL))
    for step in range(5):
        archive.write_or_keep(step, rows_of(step))
    monkeypatch.setattr(TrajectoryArchive, "write", write)
    archive.write_or_keep(5, rows_of(5))
    assert sorted(path.name for path in tmp_path.glob("*.arrow")) == [f"step-{step + 1:06d}.arrow" for step in (3, 4, 5)]


def test_lines_wait_for_room_and_none_is_half(tmp_path, monkeypatch):
    lines, write, room = JsonLines(tmp_path / "metrics.jsonl"), os.write, [10**6]

    def limited(file, data):
        part = data[: room[0]]
        room[0] -= len(part)
        if not part:
            raise FULL
        return write(file, part)

    monkeypatch.setattr(os, "write", limited)
    with MetricSinks([lines]) as sinks:
        sinks.write(1, {"a": 1.0})
        room[0] = 5  # so that half a line is written
        sinks.write(2, {"a": 2.0})
        sinks.write(3, {"a": 3.0})
        assert [json.loads(line)["step"] for line in lines.path.read_text().splitlines()] == [1] and sinks.flush() is not None
        room[0] = 10**6
        sinks.write(4, {"a": 4.0})
        assert sinks.flush() is None
    assert [json.loads(line) for line in lines.path.read_text().splitlines()] == [{"step": step, "a": float(step)} for step in range(1, 5)]

"""Rows that are written before their command: what came in is there after anything, what didn't never is, and its room is won back."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import durable as durable_module
from replay.intake import prepare
from replay.journal import JournalError
from replay.row_files import RowFiles
from replay.spare_files import SpareFiles
from tests.unit.test_replay_journal import batch_of, disk_bytes, make_group, open_replay

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _rows_first(monkeypatch):
    monkeypatch.setattr(durable_module, "ROWS_FIRST_BYTES", 0)


def group(i, tokens=50):
    return batch_of(make_group(f"p{i}", rewards=[1, 0], response_tokens=tokens))


def opened(folder, **settings):
    return open_replay(folder, "prioritized", **settings)


def prompts(replay):
    storage = replay.buffer.capture().storage
    return [int(name.split("@")[0][1:]) for name in storage.gather(storage.places).column("group_id").to_pylist()[::2]]


def row_files(folder):
    return sorted(folder.glob("rows-*.journal"))


def compact(replay):
    replay.finish_compaction(replay.begin_compaction())


# -- rows that come in, and rows that don't ---------------------------------------------------------------------------


def test_rows_without_a_command_never_come_back(tmp_path):
    replay = opened(tmp_path)
    replay.insert(group(0))
    replay.write_rows(prepare(group(1), {}))  # and no more: the process ended, or there was no room for them
    replay.insert(group(2))
    replay.close()
    again = opened(tmp_path)
    assert prompts(again) == [0, 2]
    again.close()


def test_rows_outside_of_their_command_survive_any_base(tmp_path, monkeypatch):
    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", 4)  # each file ends with its first record
    replay = opened(tmp_path, max_trajectories=4)
    for i in range(5):
        replay.insert(group(i))
    waiting = replay.write_rows(prepare(group(5), {}))
    for i in range(6, 9):
        replay.insert(group(i))
        compact(replay)
    admitted = replay.buffer.admit(waiting)
    replay.write(admitted)
    replay.settle(waiting)
    replay.buffer.add(admitted)
    assert prompts(replay) == [8, 5]
    replay.close()
    again = opened(tmp_path, max_trajectories=4)
    assert prompts(again) == [8, 5]
    compact(again)
    again.close()
    assert prompts(opened(tmp_path, max_trajectories=4)) == [8, 5]


@pytest.mark.parametrize("restart", [False, True])
def test_the_room_of_rows_that_did_not_come_in_is_won_back(tmp_path, monkeypatch, restart):
    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", 40_000)
    replay = opened(tmp_path)
    replay.insert(group(0))
    for i in range(1, 60):
        replay.settle(replay.write_rows(prepare(group(i, tokens=300), {})))
    assert replay.wants_compaction and disk_bytes(tmp_path) > 300_000
    if restart:
        replay.close()
        replay = opened(tmp_path)
    else:
        compact(replay)
    assert disk_bytes(tmp_path) < 100_000 and prompts(replay) == [0]
    replay.close()
    again = opened(tmp_path)
    assert prompts(again) == [0]
    again.close()


def test_groups_that_came_before_are_not_stored_again(tmp_path):
    replay = opened(tmp_path)
    replay.insert(group(0))
    receipt = replay.insert(batch_of(*(make_group(f"p{i}", rewards=[1, 0], response_tokens=50) for i in range(2))))
    assert receipt.groups == 1 and receipt.duplicate_groups == 1
    replay.close()
    again = opened(tmp_path)
    assert prompts(again) == [0, 1] and again.buffer.stats()["duplicate_groups"] == 1
    again.close()


def test_images_are_written_with_the_command(tmp_path):
    import hashlib

    from algorithms.types import ImageRef

    picture = os.urandom(5000)
    name = hashlib.sha256(picture).hexdigest()
    replay = opened(tmp_path)
    for i in range(2):
        replay.insert(batch_of(make_group(f"p{i}", images=(ImageRef(path="x.png", sha256=name),))), images={name: picture})
    replay.close()
    assert sum(path.read_bytes().count(picture) for path in tmp_path.iterdir()) == 1
    again = opened(tmp_path)
    assert again.buffer.capture().images == {name: picture}
    compact(again)
    again.close()
    assert opened(tmp_path).buffer.capture().images == {name: picture}


def test_many_threads_write_beside_each_other(tmp_path):
    files, rows = RowFiles(tmp_path, SpareFiles(tmp_path)), {i: prepare(group(i, tokens=5 * i), {}).encoded for i in range(40)}
    written = {}

    def write(numbers):
        for i in numbers:
            written[i] = files.write(rows[i], file_bytes=20_000)
            files.sync()

    threads = [threading.Thread(target=write, args=(range(first, 40, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(at.file, at.offset) for at in written.values()}) == 40
    assert files.settled() == {}  # nobody has said what became of them
    assert files.num_bytes == disk_bytes(tmp_path)
    for at in written.values():
        files.settle(at)
    files.close()
    assert set(files.settled()) <= {at.file for at in written.values()} and len(files.settled()) >= 2
    from replay.row_records import RecordReader, rows_in

    reader = RecordReader(tmp_path)
    for i, at in written.items():
        assert set(rows_in(reader.at(at.file, at.offset)).column("group_id").to_pylist()) == {f"p{i}@0"}


# -- a machine that loses power ----------------------------------------------------------------------------------------


def written_journal(folder, *, on_disk):
    """A journal whose third and fifth insert lie in a file of their own, as it is when the process is killed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(durable_module, "ROWS_FIRST_BYTES", 3_000)
        replay = opened(folder, journal_sync_s=1000.0)
        time.sleep(0.2)  # its thread has done what there was to do
        for i in range(7):
            replay.insert(group(i, tokens=400 if i in (2, 4) else 5))
        if on_disk:
            replay.sync()
        replay.sample(batch_size=2)
        replay.close()
    (path,) = row_files(folder)
    return folder, path.name


@pytest.fixture(scope="module")
def unsynced(tmp_path_factory):
    return written_journal(tmp_path_factory.mktemp("journal"), on_disk=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return written_journal(tmp_path_factory.mktemp("journal"), on_disk=True)


def copy_of(written, tmp_path):
    shutil.rmtree(tmp_path)
    shutil.copytree(written[0], tmp_path)
    return tmp_path / written[1]


@pytest.mark.parametrize("lost", ["file", "everything", "a part", "zeros"])
def test_a_command_whose_rows_the_disk_never_got_ends_the_journal(unsynced, tmp_path, lost):
    path = copy_of(unsynced, tmp_path)
    content = path.read_bytes()
    second = content.index(b"RTJ1", 100)
    if lost == "file":
        path.unlink()
    elif lost == "everything":
        os.truncate(path, 0)
    elif lost == "a part":
        os.truncate(path, len(content) - 100)
    else:
        path.write_bytes(content[:second] + bytes(len(content) - second))
    kept = [0, 1] if lost in ("file", "everything") else [0, 1, 2, 3]
    replay = opened(tmp_path)
    assert prompts(replay) == kept and replay.problems == []
    for i in range(kept[-1] + 1, 9):  # what was lost is sent again
        replay.insert(group(i))
    state = replay.buffer.capture().state
    replay.close()
    again = opened(tmp_path)
    assert prompts(again) == list(range(9)) and again.buffer.capture().state == state
    again.close()


def test_the_disk_has_the_rows_before_their_command(tmp_path, monkeypatch):
    order, fsync = [], os.fsync

    def note(handle):
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).split("-")[0])
        fsync(handle)

    replay = opened(tmp_path, journal_sync_s=1000.0)
    time.sleep(0.2)  # its thread has done what there was to do
    monkeypatch.setattr(os, "fsync", note)
    replay.insert(group(0))
    replay.sync()
    assert order.index("rows") < order.index("segment")
    compact(replay)
    replay.close()


def test_a_segment_is_sealed_behind_its_rows_so_that_their_loss_is_damage(written, tmp_path):
    path = copy_of(written, tmp_path)
    opened(tmp_path).close()  # seals
    os.truncate(path, 100)
    of_command = r"where rows of .*sealed-00000000.journal at byte \d+ lie"
    with pytest.raises(JournalError, match=rf"{path.name} is damaged at byte 0 .*, {of_command}"):
        opened(tmp_path)
    path.unlink()
    with pytest.raises(JournalError, match=rf"has no {path.name}, {of_command}"):
        opened(tmp_path)
    lenient = opened(tmp_path, strict=False)
    assert prompts(lenient) == [0, 1, 3, 5, 6] and len(lenient.problems) == 2
    lenient.close()


# -- damage ----------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_never_read_as_data(written, tmp_path, data):
    path = copy_of(written, tmp_path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(JournalError, match=rf"{path.name} is damaged at byte \d+"):
        opened(tmp_path)
    assert path.read_bytes() == content
    lenient = opened(tmp_path, strict=False)
    assert lenient.problems and path.name in lenient.problems[0]
    assert prompts(lenient) in ([0, 1, 3, 4, 5, 6], [0, 1, 2, 3, 5, 6])
    lenient.close()


# -- disks that don't take it ------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from replay import durable
from tests.unit.test_replay_row_files import group, opened, prompts
durable.ROWS_FIRST_BYTES = 0
replay = opened(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))  # a write past it fails half-way, as on a full disk
stored = 0
try:
    while True:
        replay.insert(group(stored, tokens=3000))
        stored += 1
except OSError as error:
    assert "rows-" in str(error) and "can't be written" in str(error), error
    assert prompts(replay) == list(range(stored))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    replay.insert(group(stored, tokens=3000))
    print(stored)
"""


def test_a_full_disk_is_told_and_costs_nothing_that_was_acknowledged(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    again = opened(tmp_path)
    assert prompts(again) == list(range(int(done.stdout) + 1)) and int(done.stdout) > 3
    again.close()


def test_a_disk_that_did_not_take_rows_is_not_relied_on_any_more(tmp_path, monkeypatch):
    files = RowFiles(tmp_path, SpareFiles(tmp_path))
    files.write(prepare(group(0), {}).encoded, file_bytes=10**6)
    fsync = os.fsync

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        files.sync()
    monkeypatch.setattr(os, "fsync", fsync)  # which says now that all is well, though the pages are gone
    with pytest.raises(OSError, match="can't be relied on any more"):
        files.sync()

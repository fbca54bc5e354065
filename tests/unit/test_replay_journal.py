"""The journal: what was acknowledged comes back, draws go on as they would have, and damage is told, never read."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algorithms.schema import to_record_batch
from conf.schema import ReplayConfig, ReplayMode
from replay import durable as durable_module
from replay.durable import DurableReplay
from replay.journal import JournalError, read_segment
from replay.recovery import Recovery, is_journal
from replay.segments import SegmentWriter
from tests.fakes import make_group

ROOT = Path(__file__).parents[2]
MODES = [mode.value for mode in ReplayMode]


def open_replay(folder, mode="fresh", *, strict=True, **others):
    return DurableReplay(ReplayConfig(**{"mode": ReplayMode(mode), "max_age": 3, **others}), seed=5, folder=folder, strict=strict)


def batch_of(*groups):
    return to_record_batch([trajectory for group in groups for trajectory in group.trajectories])


def step_of(replay, step):
    """Inserts, one of them a retry, a draw, and new priorities."""
    groups = [make_group(f"p{i}", visit=step, rewards=[1, 0, i % 2], version=step, response_tokens=1 + i) for i in range(5)]
    replay.insert(batch_of(*groups[:3]))
    replay.insert(batch_of(*groups[1:]))
    drawn = replay.sample(batch_size=12, num_updates=2, num_shards=2, policy_version=step, num_groups=4)
    if drawn.keys.size:
        replay.update_priorities(drawn.keys[:3], np.array([0.1, 0.2, 0.3]))
    return drawn


def same(one, other):
    return all(a.equals(b) for a, b in zip(one.shards, other.shards, strict=True))


def files(folder):
    return sorted(folder.rglob("*.journal"))


# -- the draws after a restart ---------------------------------------------------------------------------------------


@pytest.fixture
def rows_first(monkeypatch):
    """Whatever comes is written before it's known whether it may come in, as large inserts are."""
    monkeypatch.setattr(durable_module, "ROWS_FIRST_BYTES", 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compact_at", [None, 2])
def test_draws_after_a_restart_equal_those_of_an_uninterrupted_run(mode, compact_at, tmp_path):
    straight, broken = (open_replay(tmp_path / name, mode, max_trajectories=40) for name in ("straight", "broken"))
    for step in range(8):
        assert same(step_of(straight, step), step_of(broken, step))
        if step == compact_at:
            broken.finish_compaction(broken.begin_compaction())
        broken.close()  # closing changes nothing on disk: see the tests with kill -9
        broken = open_replay(tmp_path / "broken", mode, max_trajectories=40)
        sizes = {"bytes": 0, "batches": 0}
        assert {**broken.buffer.stats(), **sizes} == {**straight.buffer.stats(), **sizes}


@pytest.mark.parametrize("least_bytes", [4_000, durable_module.MIN_COMPACTION_BYTES])  # a few records a file, or all in one
@pytest.mark.parametrize("rows_first_bytes", [0, 3_000, durable_module.ROWS_FIRST_BYTES])  # all, some and none of the inserts
@given(st.lists(st.sampled_from(["step", "insert", "restart", "compact", "priorities"]), max_size=14), st.sampled_from(MODES))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_with_restarts_equals_the_same_without(tmp_path, monkeypatch, least_bytes, rows_first_bytes, events, mode):
    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", least_bytes)
    monkeypatch.setattr(durable_module, "ROWS_FIRST_BYTES", rows_first_bytes)
    shutil.rmtree(tmp_path)
    plain, durable = (open_replay(tmp_path / name, mode, max_trajectories=40) for name in ("plain", "durable"))
    for step, event in enumerate(events):
        if event == "restart":
            durable.close()
            durable = open_replay(tmp_path / "durable", mode, max_trajectories=40)
        elif event == "compact":
            durable.finish_compaction(durable.begin_compaction())
        elif event == "step":
            if plain.buffer.has_room(21):  # both inserts of a step, retries included
                assert same(step_of(plain, step), step_of(durable, step))
        elif event == "insert":
            for one in (plain, durable):
                if one.buffer.has_room(3):
                    one.insert(batch_of(make_group("q0", visit=step, rewards=[1, 0, 0], version=0)))
        else:
            for one in (plain, durable):
                one.update_priorities(np.arange(step), np.linspace(0.1, 0.9, step))
        assert plain.buffer.capture().state == durable.buffer.capture().state
    plain.close(), durable.close()


def test_other_settings_apply_after_a_restart(tmp_path):
    replay = open_replay(tmp_path)
    for step in range(3):
        step_of(replay, step)
    replay.close()
    for step in (3, 4):  # and those of each segment when it is done again
        smaller = open_replay(tmp_path, max_trajectories=30)
        assert len(smaller.buffer) <= 30
        step_of(smaller, step)
        before = smaller.buffer.capture().state
        smaller.close()
    again = open_replay(tmp_path)
    assert again.buffer.capture().state == before
    again.close()
    with pytest.raises(JournalError, match=r"the journal is of replay.mode=fresh, this run has filter"):
        open_replay(tmp_path, "filter")


def test_a_journal_is_read_without_being_written(written, tmp_path):
    path = copy_of(written, tmp_path)
    before = path.read_bytes()
    config = ReplayConfig(mode=ReplayMode.fresh, max_age=3)
    recovered = Recovery(config, seed=99, folder=tmp_path)
    assert is_journal(tmp_path) and recovered.problems == []
    assert files(tmp_path) == [path] and path.read_bytes() == before
    replay = open_replay(tmp_path)
    assert replay.buffer.capture().state == recovered.buffer.capture().state
    replay.close()


def test_images_are_in_the_journal(tmp_path):
    import hashlib

    from algorithms.types import ImageRef

    picture = os.urandom(5000)
    name = hashlib.sha256(picture).hexdigest()
    replay = open_replay(tmp_path)
    replay.insert(batch_of(make_group("p0", images=(ImageRef(path="x.png", sha256=name),))), images={name: picture})
    replay.close()
    again = open_replay(tmp_path)
    assert again.buffer.capture().images == {name: picture}
    again.close()


# -- disk space ------------------------------------------------------------------------------------------------------


def disk_bytes(folder):
    """Of all files, which a thread may be renaming."""
    found = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def test_the_disk_is_bounded_by_compaction(tmp_path, monkeypatch):
    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", 100_000)
    replay = open_replay(tmp_path, "prioritized", max_trajectories=40)
    largest = 0
    for i in range(150):
        replay.insert(batch_of(make_group(f"p{i}", rewards=[1, 0, 0, 1], response_tokens=200)))
        if replay.wants_compaction:
            replay.finish_compaction(replay.begin_compaction())
        largest = max(largest, disk_bytes(tmp_path))
    assert largest < 450_000 < 150 * 4 * 200 * 9  # 1 MB was inserted
    replay.close()
    again = open_replay(tmp_path, "prioritized", max_trajectories=40)
    assert again.buffer.stats()["inserted"] == 600 and len(again.buffer) == 40
    again.close()


def test_a_crash_in_a_compaction_loses_nothing(tmp_path):
    replay = open_replay(tmp_path)
    step_of(replay, 0)
    replay.begin_compaction()  # and no more: the base was never written
    step_of(replay, 1)
    replay.close()
    (tmp_path / ".base.tmp").write_bytes(b"half of a base")
    again = open_replay(tmp_path)
    assert again.buffer.stats()["groups_inserted"] == 10
    again.close()


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from conf.schema import ReplayConfig, ReplayMode
from replay.durable import DurableReplay
from tests.unit.test_replay_journal import batch_of, make_group
replay = DurableReplay(ReplayConfig(mode=ReplayMode.prioritized), seed=5, folder=sys.argv[1])
unlimited = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited))  # a write past it fails half-way, as on a full disk
stored = 0
try:
    for i in range(1000):
        replay.insert(batch_of(make_group(f"p{i}", rewards=[1, 0, 0, 1], response_tokens=300)))
        stored += 1
except OSError as error:
    assert "segment-" in str(error) and "can't be written" in str(error), error
    before = len(replay.buffer)
    try:
        replay.insert(batch_of(make_group("again", rewards=[1, 0, 0, 1], response_tokens=300)))
    except OSError:
        pass
    assert len(replay.buffer) == before == 4 * stored  # refused inserts left nothing
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    replay.insert(batch_of(make_group("again", rewards=[1, 0, 0, 1], response_tokens=300)))  # once there is space it goes on
    print(stored)
"""


def test_a_full_disk_is_told_and_costs_nothing_that_was_acknowledged(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    again = open_replay(tmp_path, "prioritized")
    assert again.buffer.stats()["groups_inserted"] == int(done.stdout) + 1 > 5
    again.close()


def insert_until(replay, deadline):
    for i in range(10_000):
        assert time.monotonic() < deadline
        replay.insert(batch_of(make_group(f"q{i}")))
        time.sleep(0.005)


def test_a_failed_fsync_ends_the_journal(tmp_path, monkeypatch):
    replay = open_replay(tmp_path, journal_sync_s=0.01)

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    deadline = time.monotonic() + 10
    with pytest.raises(OSError, match="can't be relied on any more"):
        insert_until(replay, deadline)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        open_replay(tmp_path / "file" / "journal")
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "read_only").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="read_only"):
            open_replay(tmp_path / "read_only")


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A journal of three steps in one segment, and where its records end."""
    folder = tmp_path_factory.mktemp("journal")
    replay, ends = open_replay(folder), []
    for step in range(3):
        step_of(replay, step)
        ends.append(replay._segments.num_bytes)
    replay.close()
    return folder, ends


def copy_of(written, tmp_path):
    shutil.rmtree(tmp_path)
    shutil.copytree(written[0], tmp_path)
    return files(tmp_path)[-1]


def test_a_torn_tail_is_cut(written, tmp_path):
    size = files(written[0])[-1].stat().st_size
    for cut in sorted({*np.random.default_rng(0).integers(0, size, 40).tolist(), *(end + d for end in written[1] for d in (-1, 0, 1))}):
        path = copy_of(written, tmp_path)
        os.truncate(path, min(cut, size))
        replay = open_replay(tmp_path)
        steps = sum(end <= cut for end in written[1])
        assert replay.buffer.stats()["consumed_groups"] >= 4 * steps
        for other in range(3):  # what was cut can be done again: retried inserts count once
            step_of(replay, 10 + other)
        replay.close()
        again = open_replay(tmp_path)
        assert again.buffer.capture().state == replay.buffer.capture().state
        again.close()


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_never_read_as_data(written, tmp_path, data):
    path = copy_of(written, tmp_path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"segment-00000000.journal (is damaged )?at byte \d+"):
        open_replay(tmp_path)
    assert path.read_bytes() == content  # nothing was cut
    lenient = open_replay(tmp_path, strict=False)
    assert lenient.problems and path.name in lenient.problems[0]
    sound = {trajectory_id(p, step, i) for p in range(5) for step in range(3) for i in range(3)}
    storage = lenient.buffer.capture().storage
    assert set(storage.gather(storage.places).column("trajectory_id").to_pylist()) <= sound
    lenient.close()


def trajectory_id(prompt, step, index):
    return f"p{prompt}@{step}/{index}"


def test_what_is_sound_is_kept(tmp_path):
    replay, ends = open_replay(tmp_path, max_age=99), []
    for i in range(6):
        replay.insert(batch_of(make_group(f"p{i}", rewards=[1, 0, 0])))
        ends.append(replay._segments.num_bytes)
    replay.sample(batch_size=4, policy_version=1, num_groups=6)
    replay.close()
    path = files(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[ends[2] - 5] ^= 1  # in the third insert
    path.write_bytes(content)
    lenient = open_replay(tmp_path, max_age=99, strict=False)
    storage = lenient.buffer.capture().storage
    names = {name.split("@")[0] for name in storage.gather(storage.places).column("trajectory_id").to_pylist()}
    assert names == {"p0", "p1", "p3", "p4", "p5"} and lenient.buffer.ready_groups == 0
    assert "record 3 doesn't fit its checksum" in lenient.problems[0]
    lenient.close()


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_foreign_bytes_are_no_records(tmp_path, content, last):
    path = tmp_path / "segment-00000000.journal"
    path.write_bytes(content)
    with contextlib.suppress(JournalError):
        assert list(read_segment(path, last=last)) == []
    path.write_bytes(content)
    assert list(read_segment(path, last=last, strict=False, problems=[])) == []


def test_a_missing_segment_is_told(tmp_path):
    replay = open_replay(tmp_path)
    for step in range(3):
        step_of(replay, step)
        replay.begin_compaction()
    replay.close()
    files(tmp_path)[1].unlink()
    with pytest.raises(JournalError, match=r"has no segment \[1\]"):
        open_replay(tmp_path)


def test_a_record_is_whole_or_not_there(tmp_path):
    writer = SegmentWriter(tmp_path / "segment-00000000.journal", sequence=7, sync_s=0.01)
    for i in range(20):
        writer.append({"kind": "test", "i": i}, [b"x" * i, np.arange(i)])
    writer.close()
    records = list(read_segment(writer.path, last=True))
    assert [(record.sequence, record.meta["i"], len(record.body)) for record in records] == [(7 + i, i, 9 * i) for i in range(20)]


# -- kill -9 ---------------------------------------------------------------------------------------------------------

KILLS = 50
KILLED = """
import os, signal, sys, time
import numpy as np
from conf.schema import ReplayConfig, ReplayMode
from replay import durable
from replay.durable import DurableReplay
from tests.unit.test_replay_journal import batch_of, make_group

CONFIG = ReplayConfig(mode=ReplayMode.fresh, max_age=10**9, max_trajectories=400)
durable.MIN_COMPACTION_BYTES = 150_000  # so that compactions are hit, too,
durable.ROWS_FIRST_BYTES = 4_000  # and rows that are written before their command

def load(pipe):
    replay = DurableReplay(CONFIG, seed=5, folder=sys.argv[1])
    i = replay.buffer.stats()["groups_inserted"]
    while True:
        replay.insert(batch_of(make_group(f"p{i}", rewards=[1, 0, 0], response_tokens=100 if i % 3 else 10)))
        os.write(pipe, b"inserted %d\\n" % i)
        i += 1
        if i % 4 == 0:
            drawn = replay.sample(batch_size=4, policy_version=1, num_groups=replay.buffer.ready_groups)
            os.write(pipe, b"consumed " + b" ".join(str(rows.column("group_id")[0]).encode() for rows in drawn.consumed) + b"\\n")
        if replay.wants_compaction:
            replay.finish_compaction(replay.begin_compaction())

rng, inserted, consumed = np.random.default_rng(0), 0, []
for _ in range(int(sys.argv[2])):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        load(writing)
    os.close(writing)
    with os.fdopen(reading) as told:  # a random number of answers later, and at a random moment of what comes then
        heard = [told.readline() for _ in range(rng.integers(0, 16))]
        time.sleep(rng.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = [line.split() for line in [*heard, *told.readlines()]]
    inserted = max([inserted, *(int(words[1]) + 1 for words in lines if words[0] == "inserted")])
    consumed += [name for words in lines if words[0] == "consumed" for name in words[1:]]
    replay = DurableReplay(CONFIG, seed=5, folder=sys.argv[1])
    stats = replay.buffer.stats()
    assert inserted <= stats["groups_inserted"] <= inserted + 1, (inserted, stats)  # the last may be stored before it is acknowledged
    assert stats["consumed_groups"] + stats["waiting_groups"] == stats["groups_inserted"], stats
    assert stats["size"] == min(400, stats["size"]) and stats["duplicate_groups"] == 0
    storage = replay.buffer.capture().storage
    names = storage.gather(storage.places).column("trajectory_id").to_pylist()
    assert len(names) == len(set(names)) and {name.split("@")[0] for name in names} <= {f"p{i}" for i in range(stats["groups_inserted"])}
    inserted = stats["groups_inserted"]
    replay.close()
assert len(consumed) == len(set(consumed))
print(inserted, len(consumed))
"""


def test_nothing_acknowledged_is_lost_or_doubled_by_kill_9_at_random_moments(tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(KILLS)]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    inserted, consumed = map(int, done.stdout.split())
    assert inserted > 200 and consumed > 100


def test_the_limit_of_a_file_is_restored():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # the full disk was another process's


# -- a draw that is asked for again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fresh", "episode", "none"])
@pytest.mark.parametrize("between", ["nothing", "restart", "compaction and restart", "inserts and restart"])
def test_a_draw_whose_answer_was_lost_is_given_again(tmp_path, mode, between):
    replay = open_replay(tmp_path, mode)
    for turn in range(2):
        replay.insert(batch_of(*(make_group(f"p{turn}{i}", rewards=[1, 0], version=turn) for i in range(4))))
    request = {"batch_size": 4, "num_updates": 2, "num_shards": 2, "policy_version": 1, "num_groups": 4}
    drawn = replay.sample(**request, request_id="step 1")
    if "compaction" in between:
        replay.finish_compaction(replay.begin_compaction())
    if "inserts" in between:
        replay.insert(batch_of(make_group("later", rewards=[1, 0])))
    if "restart" in between:
        replay.close()
        replay = open_replay(tmp_path, mode)
    consumed = replay.buffer.stats()["consumed_groups"]
    again = replay.sample(**request, request_id="step 1")
    assert same(again, drawn) and again.stats == drawn.stats and replay.buffer.stats()["consumed_groups"] == consumed == 4
    other = replay.sample(**request, request_id="step 2")
    assert replay.buffer.stats()["consumed_groups"] == 8 and replay.answered("step 1") is None and not same(other, drawn)


def test_a_restored_snapshot_forgets_the_last_draw(tmp_path):
    replay = open_replay(tmp_path / "journal")
    replay.insert(batch_of(make_group("p0", rewards=[1, 0]), make_group("p1", rewards=[1, 0])))
    before = replay.buffer.capture()
    request = {"batch_size": 2, "policy_version": 0, "num_groups": 1}
    replay.sample(**request, request_id="step 1")
    replay.load(before)
    replay.close()
    replay = open_replay(tmp_path / "journal")
    assert replay.answered("step 1") is None
    replay.sample(**request, request_id="step 1")
    assert replay.buffer.stats()["consumed_groups"] == 1

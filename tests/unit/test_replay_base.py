"""A base of the journal: rows stay where they lie, the disk stays bounded, and no crash while it is written costs anything."""

import contextlib
import errno
import os
import shutil
import threading
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import ReplayMode, ReplayRemover
from replay import durable as durable_module
from replay.base import SCHEMAS, _Window
from replay.buffer import ReplayBuffer
from replay.journal import SUFFIX, JournalError, read_segment
from replay.moving import files_to_empty
from replay.whereabouts import Places, runs_of
from tests.fakes import make_group
from tests.unit.test_replay_journal import batch_of, disk_bytes, open_replay, same, step_of


def compact(replay):
    replay.finish_compaction(replay.begin_compaction())


def names_of(replay):
    """Trajectories of the table by key, then those of the groups that wait."""
    saved = getattr(replay, "buffer", replay).capture()
    batches = [saved.storage.gather(saved.storage.places), *saved.waiting]
    return [name for batch in batches for name in batch.column("trajectory_id").to_pylist()]


def kinds(folder):
    return sorted({path.name.split("-")[0] for path in folder.glob(f"*{SUFFIX}")})


def filled(folder, groups=6, **others):
    """Consumed groups of three rows, and as many that wait; each insert a record."""
    replay = open_replay(folder, max_age=99, max_trajectories=999, **others)
    for i in range(groups):
        replay.insert(batch_of(make_group(f"p{i}", rewards=[1, 0, 0], response_tokens=50)))
    replay.sample(batch_size=4, policy_version=1, num_groups=groups)
    for i in range(groups):
        replay.insert(batch_of(make_group(f"w{i}", rewards=[1, 0, 0], response_tokens=50)))
    return replay


# -- what a base writes ----------------------------------------------------------------------------------------------


def test_a_base_does_not_write_rows_again(tmp_path):
    replay = filled(tmp_path)
    before = disk_bytes(tmp_path)
    for _ in range(3):
        compact(replay)
    expected = names_of(replay)
    replay.close()
    assert kinds(tmp_path) == ["base", "sealed", "segment"]
    assert len(list(tmp_path.glob("base-*"))) == 1 and disk_bytes(tmp_path) < before + 20_000
    again = open_replay(tmp_path, max_age=99, max_trajectories=999)
    assert names_of(again) == expected and len(expected) == 36
    again.close()


def test_files_whose_rows_have_all_left_go(tmp_path):
    replay = open_replay(tmp_path, "prioritized", max_trajectories=12)
    for i in range(3):
        for j in range(4):
            replay.insert(batch_of(make_group(f"p{i}{j}", rewards=[1, 0, 0])))
        compact(replay)
    replay.close()
    assert [path.name for path in sorted(tmp_path.glob("sealed-*"))] == ["sealed-00000002.journal"]


def test_the_emptiest_files_are_emptied_until_the_rest_is_small_enough():
    sizes, live = {0: 100, 1: 100, 2: 100, 3: 100}, {0: 90.0, 1: 10.0, 2: 0.0, 3: 40.0}
    assert files_to_empty(sizes, live, allowed=300) == set()  # file 2 goes anyway
    assert files_to_empty(sizes, live, allowed=210) == {1}
    assert files_to_empty(sizes, live, allowed=200) == {1, 3}
    assert files_to_empty(sizes, live, allowed=0) == {0, 1, 3}


@pytest.mark.parametrize(
    "others",
    [*({"remover": remover} for remover in ReplayRemover), {"max_times_sampled": 2}],
    ids=lambda others: "-".join(str(getattr(value, "value", value)) for value in others.values()),
)
def test_the_disk_is_bounded_and_draws_stay_exact_whichever_rows_leave(tmp_path, monkeypatch, others):
    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", 40_000)
    rng, others = np.random.default_rng(0), {"max_trajectories": 120, **others}
    replay = open_replay(tmp_path, "prioritized", **others)
    plain, bases, bound = ReplayBuffer(replay.buffer.config, seed=5), 0, 0.0
    for i in range(300):
        version, rewards = int(rng.integers(0, 20)), rng.integers(0, 2, 4).tolist()
        for one in (plain, replay):
            one.insert(batch_of(make_group(f"p{i}", rewards=rewards, response_tokens=100, version=version)))
        keys, values = rng.integers(max(0, 4 * i - 200), 4 * i + 4, 6), rng.random(6)
        assert plain.update_priorities(keys, values) == replay.update_priorities(keys, values)
        drawn = [one.sample(batch_size=6) for one in (plain, replay)]
        assert same(*drawn)
        if replay.wants_compaction:
            compact(replay)
            bases += 1
        bound = max(bound, disk_bytes(tmp_path) / max(replay.buffer.num_bytes, 40_000 / 3))
        if i % 60 == 59:
            replay.close()
            replay = open_replay(tmp_path, "prioritized", **others)
    assert names_of(replay) == names_of(plain)
    assert bases >= 3 and bound < 4.5  # four times the buffer, and what is small beside rows that are larger
    replay.close()


def test_a_loaded_state_is_written_into_files_of_its_own(tmp_path):
    source = filled(tmp_path / "one")
    replay = open_replay(tmp_path / "other", max_age=99, max_trajectories=999)
    replay.insert(batch_of(make_group("gone")))
    replay.load(source.buffer.capture())
    replay.insert(batch_of(make_group("later", rewards=[1, 0])))
    expected = names_of(replay)
    replay.close()
    assert kinds(tmp_path / "other") == ["base", "rows", "segment"]
    again = open_replay(tmp_path / "other", max_age=99, max_trajectories=999)
    assert names_of(again) == expected and "gone@0/0" not in expected
    source.close(), again.close()


def test_images_are_moved_with_the_rows_that_show_them(tmp_path, monkeypatch):
    import hashlib

    from algorithms.types import ImageRef

    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", 1000)
    pictures = {hashlib.sha256(content).hexdigest(): content for content in (bytes([i]) * 3000 for i in range(8))}
    replay = open_replay(tmp_path, "prioritized", max_trajectories=16, remover=ReplayRemover.lowest_priority)
    for i, (name, content) in enumerate(pictures.items()):
        group = make_group(f"p{i}", rewards=[1, 0], images=(ImageRef(path="x.png", sha256=name),))
        replay.insert(batch_of(group), images={name: content})
    replay.update_priorities(np.arange(16), np.where(np.arange(16) // 2 % 4 == 0, 5.0, 0.1))
    for i in range(6):
        replay.insert(batch_of(make_group(f"q{i}", rewards=[1, 0])))
    compact(replay)
    expected = replay.buffer.capture().images
    assert list(tmp_path.glob("rows-*")) and 0 < len(expected) < 8
    replay.close()
    again = open_replay(tmp_path, "prioritized", max_trajectories=16, remover=ReplayRemover.lowest_priority)
    assert again.buffer.capture().images == expected
    again.close()


# -- damage in what a base refers to ---------------------------------------------------------------------------------


def damaged(folder, prompt):
    """Change a byte of the record that holds a prompt's group; its file and offset."""
    (path,) = folder.glob("sealed-*")
    (record,) = [r for r in read_segment(path, last=False) if r.meta["kind"] == "insert" and f"{prompt}@0" in r.meta["turns"]]
    content = bytearray(path.read_bytes())
    content[record.end - 5] ^= 1
    path.write_bytes(content)
    return path, record.offset


@pytest.mark.parametrize("prompt", ["p2", "w2"])
def test_damage_of_a_row_that_a_base_refers_to_is_told_and_costs_that_record_only(tmp_path, prompt):
    replay = filled(tmp_path)
    compact(replay)
    replay.insert(batch_of(make_group("later", rewards=[1, 0])))
    expected = [name for name in names_of(replay) if not name.startswith(prompt)]
    replay.close()
    path, offset = damaged(tmp_path, prompt)
    with pytest.raises(JournalError, match=rf"{path.name} is damaged at byte {offset}"):
        open_replay(tmp_path, max_age=99, max_trajectories=999)
    lenient = open_replay(tmp_path, max_age=99, max_trajectories=999, strict=False)
    assert names_of(lenient) == expected and f"{path.name} is damaged at byte {offset}" in lenient.problems[0]
    receipt = lenient.insert(batch_of(make_group(prompt, rewards=[1, 0, 0])), {f"{prompt}@0": 8} if prompt == "w2" else None)
    assert receipt.groups == (prompt == "w2")  # what waited may come again, what was consumed may not
    expected = names_of(lenient)
    compact(lenient)
    lenient.close()
    again = open_replay(tmp_path, max_age=99, max_trajectories=999)  # the new base refers to sound rows only
    assert names_of(again) == expected
    again.close()


def test_a_file_that_a_base_needs_and_that_is_gone_is_told(tmp_path):
    replay = filled(tmp_path)
    compact(replay)
    replay.close()
    (tmp_path / "sealed-00000000.journal").unlink()
    with pytest.raises(JournalError, match=r"has no segment-00000000.journal, where rows of its base lie"):
        open_replay(tmp_path, max_age=99)
    lenient = open_replay(tmp_path, max_age=99, strict=False)
    assert len(lenient.buffer) == 0 and len(lenient.problems) == 1
    lenient.close()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_of_a_base_is_never_read_as_data(base_bytes, data):
    folder, path, content = base_bytes
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    for strict in (True, False):
        with pytest.raises(JournalError, match=rf"{path.name} is damaged at byte 0"):
            open_replay(folder, max_age=99, strict=strict)


@pytest.fixture(scope="module")
def base_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    replay = filled(folder)
    compact(replay)
    replay.close()
    (path,) = folder.glob("base-*")
    return folder, path, path.read_bytes()


def test_a_base_of_an_earlier_version_is_refused(tmp_path):
    filled(tmp_path).close()
    (tmp_path / "base-00000007").mkdir()
    with pytest.raises(JournalError, match=r"base-00000007 is of the journal of an earlier version"):
        open_replay(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=8))
def test_remembered_names_are_written_as_they_are_whatever_became_arrow_before(changes):
    window = _Window(SCHEMAS["known_groups"], lambda names: [names])
    names, made = [], 0
    for gone, added, other in changes:  # cut at the front, grown at the end, or replaced by what was never there
        names = ([] if other else names[gone:]) + [f"g{made + i}" for i in range(added)]
        made += added
        assert window.encoded(names).column("group_id").to_pylist() == names


# -- crashes ---------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


OPERATIONS = ("open", "fsync", "pwritev", "pwrite", "replace", "rename", "unlink")


def crash_at(step):
    """Let the step-th file operation of this thread, counted from now on, not happen, and none after it in any thread."""
    done, me, patches = [0], threading.get_ident(), []
    for name in OPERATIONS:
        real = getattr(os, name)

        def operation(*arguments, real=real, **words):
            mine = threading.get_ident() == me
            done[0] += mine
            if done[0] > step:
                raise Crash if mine else OSError(errno.EIO, "the process has ended")
            return real(*arguments, **words)

        patches.append(mock.patch.object(os, name, operation))
    return patches, done


@pytest.mark.parametrize("mode", ["fresh", "prioritized"])
def test_a_crash_at_any_step_of_writing_a_base_loses_nothing(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", 4_000)  # so that rows are moved, and files go
    others = {"max_trajectories": 30, "remover": ReplayRemover.lowest_priority}
    step, finished = 0, False
    while not finished:
        shutil.rmtree(tmp_path)
        replay = open_replay(tmp_path, mode, **others)
        plain = ReplayBuffer(replay.buffer.config, seed=5)
        for i in range(4):
            assert same(step_of(plain, i), step_of(replay, i))
            if i == 1:
                compact(replay)
        begun = replay.begin_compaction()
        patches, done = crash_at(step)
        try:
            for patch in patches:
                patch.start()
            replay.finish_compaction(begun)
            finished = bool(list(tmp_path.glob("rows-*")))
            assert finished  # else nothing was moved, and not all steps were taken
        except Crash:
            step += 1
            with contextlib.suppress(OSError):
                replay._segments.wait_sealed()  # its thread ends with the process
        finally:
            for patch in patches:
                patch.stop()
        again = open_replay(tmp_path, mode, **others)
        assert again.buffer.capture().state == plain.capture().state and names_of(again) == names_of(plain)
        assert len(list(tmp_path.glob("base-*"))) == 1 and not (tmp_path / ".base.tmp").exists()
        assert same(step_of(plain, 4), step_of(again, 4))
        again.close()
    assert step > 10 and done[0] <= step


def test_a_base_that_finds_no_room_leaves_everything_as_it_was(tmp_path):
    replay = filled(tmp_path)
    compact(replay)
    replay.insert(batch_of(make_group("later", rewards=[1, 0])))
    begun, before = replay.begin_compaction(), sorted(path.name for path in tmp_path.iterdir() if "segment" not in path.name)
    with mock.patch("replay.base.os.replace", side_effect=OSError(28, "No space left on device")), pytest.raises(OSError, match="No space"):
        replay.finish_compaction(begun)
    assert {path.name for path in tmp_path.iterdir()} >= set(before) and len(list(tmp_path.glob("base-*"))) == 1
    compact(replay)
    expected = names_of(replay)
    replay.close()
    again = open_replay(tmp_path, max_age=99, max_trajectories=999)
    assert names_of(again) == expected
    again.close()


# -- an end that the disk never got ----------------------------------------------------------------------------------


@pytest.fixture
def three_segments(tmp_path):
    """Three inserts, each in a segment of its own."""
    replay = open_replay(tmp_path)
    for i in range(3):
        replay.insert(batch_of(make_group(f"p{i}", rewards=[1, 0])))
        if i < 2:
            replay.begin_compaction()
    replay.close()
    return tmp_path


@pytest.mark.parametrize("cut", [5, 700, None])
def test_segments_behind_a_torn_end_that_was_never_sealed_are_given_up(three_segments, cut):
    path = three_segments / "segment-00000001.journal"
    os.rename(three_segments / "sealed-00000001.journal", path)  # as if the machine had lost power before the disk had it
    records = [record.offset for record in read_segment(path, last=True)]
    os.truncate(path, records[1] + cut if cut is not None else records[1])
    replay = open_replay(three_segments)
    assert names_of(replay) == ["p0@0/0", "p0@0/1"]
    for i in (1, 2):  # they come again
        replay.insert(batch_of(make_group(f"p{i}", rewards=[1, 0])))
    replay.close()
    again = open_replay(three_segments)
    assert len(again.buffer) == 6
    again.close()


def test_a_torn_end_of_a_sealed_segment_is_damage(three_segments):
    path = three_segments / "sealed-00000001.journal"
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(JournalError, match=rf"{path.name} is damaged at byte \d+"):
        open_replay(three_segments)


# -- where rows lie --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), unique=True, max_size=30), st.lists(st.integers(0, 70), max_size=30))
def test_runs_find_each_row_where_it_was_written(serials, asked):
    written = np.array(serials, np.int64)
    runs = runs_of(written, file=3, offset=100)
    places = Places(runs=runs[np.argsort(runs["serial"])])
    for serial, which in zip(asked, places.find(np.array(asked, np.int64)).tolist(), strict=True):
        if serial not in serials:
            assert which == -1
        else:
            run = places.runs[which]
            assert (run["file"], run["offset"]) == (3, 100) and written[run["row"] + serial - run["serial"]] == serial


def test_modes_with_steps_have_their_waiting_groups_back(tmp_path):
    for mode in ("none", "filter", "episode", "fifo", "fresh"):
        replay = open_replay(tmp_path / mode, ReplayMode(mode).value)
        replay.insert(batch_of(make_group("p1", rewards=[1, 0]), make_group("p0", rewards=[0, 0])), {"p0@0": 0, "p1@0": 1})
        compact(replay)
        expected = names_of(replay)
        replay.close()
        again = open_replay(tmp_path / mode, mode)
        assert names_of(again) == expected and len(expected) == 4 and again.buffer.ready_groups == 2
        again.close()

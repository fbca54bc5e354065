"""Files that are written over: they save the disk work, stay within the journal's bounds, and what was in them is never read as data."""

import errno
import os
import shutil
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import durable as durable_module
from replay.journal import HEADER_BYTES, JournalError
from replay.pages import PAGE
from replay.spare_files import SpareFiles
from tests.unit.test_replay_row_files import compact, group, opened, prompts, row_files

SETTINGS = {"max_trajectories": 8, "journal_sync_s": 1000.0}


@pytest.fixture(autouse=True)
def _rows_first(monkeypatch):
    monkeypatch.setattr(durable_module, "ROWS_FIRST_BYTES", 0)
    monkeypatch.setattr(durable_module, "MIN_COMPACTION_BYTES", 256_000)


def spares(folder):
    return sorted(folder.glob("spare-*.journal"))


def with_spares(folder):
    """A journal with files to write over, and four groups."""
    replay = opened(folder, **SETTINGS)
    for i in range(40):
        replay.insert(group(i, tokens=300))
    compact(replay)
    return replay


def test_a_file_whose_rows_have_left_is_written_over(tmp_path):
    replay = with_spares(tmp_path)
    kept = {path.stat().st_ino for path in spares(tmp_path)}
    assert len(kept) > 1
    for i in range(40, 70):
        replay.insert(group(i, tokens=300))
    written = {path.stat().st_ino for path in row_files(tmp_path)} & kept
    assert len(written) > 1 and len(spares(tmp_path)) == len(kept) - len(written)
    replay.close()
    again = opened(tmp_path, **SETTINGS)
    assert prompts(again) == [66, 67, 68, 69]
    again.close()


def test_spare_files_and_all_others_stay_within_the_bound(tmp_path):
    def num_bytes():
        return sum(path.stat().st_size for path in tmp_path.iterdir() if not path.name.startswith("base"))

    replay, most, seen = with_spares(tmp_path), 256_000, 0
    for i in range(40, 400):
        replay.insert(group(i, tokens=300 if i % 40 < 20 else 3))
        seen = max(seen, num_bytes())
        if replay.wants_compaction:
            compact(replay)
            assert num_bytes() <= 1.5 * most  # a file is a quarter
    assert most < seen < 1.75 * most
    replay.close()
    again = opened(tmp_path, **SETTINGS)
    assert num_bytes() <= 1.5 * most  # a file is a quarter
    again.close()


def test_spare_files_of_a_former_process_are_used(tmp_path):
    with_spares(tmp_path).close()
    kept = {path.stat().st_ino for path in spares(tmp_path)}
    replay = opened(tmp_path, **SETTINGS)
    replay.insert(group(40, tokens=300))
    assert {path.stat().st_ino for path in row_files(tmp_path)} & kept
    names = {path.name for path in [*row_files(tmp_path), *spares(tmp_path)]}
    compact(replay)
    assert len(names) == len({name.split("-")[1] for name in names})  # no number is there twice
    replay.close()


def test_a_spare_file_that_somebody_deleted_is_not_missed(tmp_path):
    replay = with_spares(tmp_path)
    for path in spares(tmp_path):
        path.unlink()
    replay.insert(group(40, tokens=300))
    compact(replay)
    replay.close()
    again = opened(tmp_path, **SETTINGS)
    assert prompts(again) == [37, 38, 39, 40]
    again.close()


@pytest.mark.parametrize("what", ["rows", "command", "base"])
def test_spare_files_are_given_up_for_what_finds_no_room(tmp_path, what):
    replay = with_spares(tmp_path)
    assert spares(tmp_path)
    write = os.pwritev

    def full(handle, views, offset):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
        if spares(tmp_path) and name.startswith({"rows": "rows", "command": "segment", "base": ".base"}[what]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, views, offset)

    with mock.patch.object(os, "pwritev", full):
        with pytest.raises(OSError, match="No space"):
            compact(replay) if what == "base" else replay.insert(group(40, tokens=300))
        assert not spares(tmp_path)
        replay.insert(group(40, tokens=300))
    compact(replay)
    expected = prompts(replay)
    replay.close()
    again = opened(tmp_path, **SETTINGS)
    assert prompts(again) == expected and 40 in expected
    again.close()


def test_the_smallest_spare_files_go_first_and_the_largest_is_taken(tmp_path):
    files = SpareFiles(tmp_path)
    for number, size in enumerate((300, 100, 200)):
        (tmp_path / f"rows-{number}").write_bytes(bytes(size))
        files.add(tmp_path / f"rows-{number}", number)
    assert [path.stat().st_size for path in spares(tmp_path)] == [300, 100, 200]
    files.allow(550)
    files.trim()
    assert [path.stat().st_size for path in spares(tmp_path)] == [300, 200]
    assert files.take(tmp_path / "new") == 300 and (tmp_path / "new").stat().st_size == 300
    files.allow(0)
    files.trim()
    assert files.take(tmp_path / "other") is None and [path.name for path in tmp_path.iterdir()] == ["new"]


# -- a machine that loses power while a file is written over -----------------------------------------------------------


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    """A journal with two inserts in a file that was written over, the first of which the disk had; and what was there before."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(durable_module, "ROWS_FIRST_BYTES", 0)
        patched.setattr(durable_module, "MIN_COMPACTION_BYTES", 256_000)
        folder = tmp_path_factory.mktemp("journal")
        with_spares(folder).close()
        replay = opened(folder, **SETTINGS)
        before = {path.stat().st_ino: path.read_bytes() for path in spares(folder)}
        replay.insert(group(40, tokens=300))
        replay.sync()
        replay.insert(group(41, tokens=300))
        (path,) = (path for path in row_files(folder) if path.stat().st_ino in before)
        copy = tmp_path_factory.mktemp("copies") / "killed"
        shutil.copytree(folder, copy)
        former = before[path.stat().st_ino]
        replay.close()
    return copy, path.name, former


def at_of(content, number):
    """Where the file's records begin."""
    starts, offset = [], 0
    for _ in range(number):
        text_bytes, body_bytes = (int.from_bytes(content[offset + i : offset + i + 8], "little") for i in (16, 24))
        starts.append(offset)
        offset += HEADER_BYTES + text_bytes + body_bytes
    return [*starts, offset]


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_in_the_file_before_is_never_taken_for_rows_that_the_disk_did_not_get(over, tmp_path, data):
    folder, name, former = over
    shutil.rmtree(tmp_path)
    shutil.copytree(folder, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    _, start, end = at_of(content, 2)
    pages = range(start // PAGE, -(-end // PAGE))
    lost = data.draw(st.sets(st.sampled_from(pages), min_size=1))
    changed = False
    for page in lost:
        here = slice(max(page * PAGE, start), min((page + 1) * PAGE, end, len(former)))
        changed = changed or content[here] != former[here]
        content[here] = former[here]
    (tmp_path / name).write_bytes(content)
    replay = opened(tmp_path, **SETTINGS)
    assert prompts(replay) == ([37, 38, 39, 40] if changed else [38, 39, 40, 41]) and replay.problems == []
    replay.insert(group(42))
    replay.close()
    again = opened(tmp_path, **SETTINGS)
    assert prompts(again)[-1] == 42
    again.close()


@pytest.mark.parametrize("way", ["former content", "changed byte", "gone"])
def test_rows_that_the_disk_had_are_damage_when_they_are_not_there(over, tmp_path, way):
    folder, name, former = over
    shutil.rmtree(tmp_path)
    shutil.copytree(folder, tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    _, end, _ = at_of(content, 2)
    if way == "former content":
        content[:end] = former[:end]
    else:
        content[end - 9000] ^= 1
    path.write_bytes(content)
    if way == "gone":
        path.unlink()
    match = {
        "former content": r"is damaged at byte 0 \(.*the file that was there before",
        "changed byte": r"is damaged at byte 0",
        "gone": "has no",
    }
    with pytest.raises(JournalError, match=match[way]):
        opened(tmp_path, **SETTINGS)
    assert way == "gone" or path.read_bytes() == content
    lenient = opened(tmp_path, strict=False, **SETTINGS)
    assert lenient.problems and prompts(lenient) == ([36, 37, 38, 39] if way == "gone" else [37, 38, 39, 41])
    lenient.close()


def test_a_spare_file_that_cannot_be_deleted_is_told_and_harms_nothing(tmp_path, caplog):
    replay = with_spares(tmp_path)
    kept = spares(tmp_path)
    with mock.patch("replay.spare_files.Path.unlink", side_effect=PermissionError(errno.EACCES, "Permission denied")):
        replay._spares.allow(0)
        replay.insert(group(40, tokens=3))
        replay.sync()
    assert f"{kept[0]} can't be deleted" in caplog.text
    replay.insert(group(41, tokens=3))
    replay.close()
    again = opened(tmp_path, **SETTINGS)
    assert prompts(again) == [38, 39, 40, 41]
    again.close()

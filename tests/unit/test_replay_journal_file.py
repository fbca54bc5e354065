"""Files that are written past the page cache: whatever way a write takes, the bytes are where they belong."""

import errno
import fcntl
import mmap
import os
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import journal_file
from replay.journal_file import DIRECT_FROM, PAGE, PIECE, JournalFile

SIZES = st.one_of(st.integers(0, 300), st.sampled_from([PAGE, DIRECT_FROM - 1, DIRECT_FROM, PIECE, PIECE + 1, 3 * PIECE + 77]))


def views_of(rng, sizes):
    return [memoryview(rng.bytes(size)) for size in sizes]


def written(path, writes):
    """Write lists of buffers one behind the other; what the file should hold."""
    file, content = JournalFile(path), b""
    for views in writes:
        file.write(views, len(content))
        content += b"".join(views)
    file.sync()
    file.close()
    return content


def is_direct(handle):
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)


def direct_writes(monkeypatch):
    """Tell the buffers of those that go past the page cache."""
    real, found = os.pwritev, []

    def pwritev(handle, views, offset):
        if is_direct(handle):
            found.append([len(view) for view in views if len(view)])
        return real(handle, views, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    return found


@given(st.lists(st.lists(SIZES, max_size=4), max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_writes_give_the_bytes_in_their_order(tmp_path, sizes):
    path, rng = tmp_path / "file", np.random.default_rng(0)
    path.unlink(missing_ok=True)
    assert written(path, [views_of(rng, some) for some in sizes]) == path.read_bytes()


def test_whole_pages_of_large_writes_go_directly_where_the_file_system_can(tmp_path, monkeypatch):
    found = direct_writes(monkeypatch)
    content = written(tmp_path / "file", [[memoryview(b"x" * 100)], views_of(np.random.default_rng(0), [3 * PIECE])])
    assert (tmp_path / "file").read_bytes() == content
    assert not found or sum(map(sum, found)) == 3 * PIECE - PAGE  # a memory file system has no device


def test_whole_pages_go_to_the_device_from_where_they_lie(tmp_path, monkeypatch):
    found = direct_writes(monkeypatch)
    pages = mmap.mmap(-1, 2 * PIECE)
    pages.write(np.random.default_rng(0).bytes(2 * PIECE))
    header = b"h" * 50 + b" " * (PAGE - 50)
    content = written(tmp_path / "file", [[memoryview(header[:50]), memoryview(header[50:]), memoryview(pages), memoryview(b"end")]])
    assert (tmp_path / "file").read_bytes() == content == header + pages[:] + b"end"
    assert found in ([], [[PAGE, 2 * PIECE]])  # at once: the header isn't waited for


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3 * PAGE)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_buffers_that_begin_with_a_page_and_others_are_written_in_their_order(tmp_path, parts):
    path, rng, views = tmp_path / "file", np.random.default_rng(0), []
    path.unlink(missing_ok=True)
    for begins_page, size in [*parts, (False, DIRECT_FROM)]:
        pages = mmap.mmap(-1, size + PAGE)
        views.append(memoryview(pages)[: size] if begins_page else memoryview(pages)[7 : 7 + size])
        views[-1][:] = rng.bytes(size)
    assert written(path, [views]) == path.read_bytes()


@pytest.mark.parametrize("failing", ["open", "pwritev"])
def test_a_file_system_that_cannot_write_directly_is_written_the_usual_way(tmp_path, failing):
    real = getattr(os, failing)

    def refuse(*arguments, **words):
        if not (arguments[1] & os.O_DIRECT if failing == "open" else is_direct(arguments[0])):
            return real(*arguments, **words)
        raise OSError(errno.EINVAL, "Invalid argument")

    with mock.patch.object(journal_file.os, failing, refuse):
        content = written(tmp_path / "file", [views_of(np.random.default_rng(i), [2 * PIECE + 5]) for i in range(2)])
    assert (tmp_path / "file").read_bytes() == content


def test_a_direct_write_that_comes_short_is_gone_on_with(tmp_path, monkeypatch):
    real, short = os.pwritev, []

    def pwritev(handle, views, offset):
        if not is_direct(handle):
            return real(handle, views, offset)
        whole = max((view for view in views), key=len)
        short.append(len(whole))
        return real(handle, [whole[: PAGE * (len(whole) // PAGE // 2)]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    content = written(tmp_path / "file", [views_of(np.random.default_rng(0), [2 * PIECE])])
    assert (tmp_path / "file").read_bytes() == content
    assert short in ([], [PIECE, PIECE])


def test_a_full_device_is_told_and_what_was_written_can_be_taken_back(tmp_path, monkeypatch):
    file = JournalFile(tmp_path / "file")
    file.write([memoryview(b"before")], 0)
    usual = os.pwritev

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", lambda handle, views, offset: usual(handle, views, offset) if offset < PAGE else full())
        with pytest.raises(OSError, match="No space"):
            file.write([memoryview(bytes(2 * PIECE))], 6)
    assert (tmp_path / "file").stat().st_size == PAGE
    file.truncate(6)
    file.write([memoryview(b", after")], 6)
    file.close()
    assert (tmp_path / "file").read_bytes() == b"before, after"

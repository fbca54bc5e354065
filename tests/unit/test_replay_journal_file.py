"""Files that are written past the page cache: whatever way a write takes, the bytes are where they belong."""

import errno
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


def direct_writes(monkeypatch):
    """Count those that go past the page cache."""
    real, found = os.pwrite, []

    def pwrite(handle, data, offset):
        found.append(len(data))
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
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
    assert not found or sum(found) == 3 * PIECE - PAGE  # a memory file system has no device


@pytest.mark.parametrize("failing", ["open", "pwrite"])
def test_a_file_system_that_cannot_write_directly_is_written_the_usual_way(tmp_path, failing):
    real = getattr(os, failing)

    def refuse(*arguments, **words):
        if failing == "open" and not arguments[1] & os.O_DIRECT:
            return real(*arguments, **words)
        raise OSError(errno.EINVAL, "Invalid argument")

    with mock.patch.object(journal_file.os, failing, refuse):
        content = written(tmp_path / "file", [views_of(np.random.default_rng(i), [2 * PIECE + 5]) for i in range(2)])
    assert (tmp_path / "file").read_bytes() == content


def test_a_direct_write_that_comes_short_is_gone_on_with(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: real(handle, data[: PAGE * (len(data) // PAGE // 2)], offset))
    content = written(tmp_path / "file", [views_of(np.random.default_rng(0), [2 * PIECE])])
    assert (tmp_path / "file").read_bytes() == content


def test_a_full_device_is_told_and_what_was_written_can_be_taken_back(tmp_path, monkeypatch):
    file = JournalFile(tmp_path / "file")
    file.write([memoryview(b"before")], 0)
    usual = os.pwritev

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        patched.setattr(os, "pwritev", lambda handle, views, offset: usual(handle, views, offset) if offset < PAGE else full())
        with pytest.raises(OSError, match="No space"):
            file.write([memoryview(bytes(2 * PIECE))], 6)
    assert (tmp_path / "file").stat().st_size == PAGE
    file.truncate(6)
    file.write([memoryview(b", after")], 6)
    file.close()
    assert (tmp_path / "file").read_bytes() == b"before, after"

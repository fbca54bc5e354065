"""Staged files are whole, private and gone afterwards, also those of a process that was killed."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from weights.manifest import WeightUpdateError
from weights.owned_folder import remove_abandoned
from weights.staging import StagingArea, shared_memory_root


def test_files_are_memory_that_only_their_owner_can_read(tmp_path: Path) -> None:
    with StagingArea(str(tmp_path)) as area:
        paths, memory = area.allocate("mirror", [100, 7])
        memory[1][:] = range(7)
        assert [os.path.getsize(path) for path in paths] == [100, 7]
        assert Path(paths[1]).read_bytes() == bytes(range(7))
        for path in paths:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert os.stat(path).st_blocks > 0, "reserved, so that writing cannot run out of memory"
        assert stat.S_IMODE(os.stat(area.folder).st_mode) == 0o700


def test_free_removes_some_files_and_close_the_rest(tmp_path: Path) -> None:
    area = StagingArea(str(tmp_path))
    (first, _), (second, _) = area.allocate("mirror", [10]), area.allocate("mirror", [10])
    area.free(first)
    area.free(first)
    assert not os.path.exists(first[0]) and os.path.exists(second[0])
    area.close()
    area.close()
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_told_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weights.staging.os.posix_fallocate", no_room)
    with StagingArea(str(tmp_path)) as area:
        with pytest.raises(WeightUpdateError, match=r"cannot stage 30 bytes of weights in .*No space left"):
            area.allocate("mirror", [10, 20])
        assert list(area.folder.glob("mirror-*")) == []


def test_shared_memory_without_room_is_left_for_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = shared_memory_root()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    assert shared_memory_root(2**20) == root
    assert shared_memory_root(2**30) != Path("/dev/shm")


def test_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with StagingArea(str(tmp_path)) as living:
        paths, _ = living.allocate("mirror", [10])
        with StagingArea(str(tmp_path)):
            assert os.path.exists(paths[0])


def test_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from weights.staging import StagingArea\n"
        "area = StagingArea(sys.argv[1])\n"
        "(area.folder / 'left').write_bytes(b'x')\n"
        "print(area.folder, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    left = Path(result.stdout.strip())
    assert left.is_dir() and (left / "left").exists()
    with StagingArea(str(tmp_path)) as area:
        assert list(tmp_path.iterdir()) == [area.folder]


def test_folders_that_are_not_staging_areas_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rethinker-weights-no-lock").mkdir()
    (tmp_path / "other").mkdir()
    assert remove_abandoned(tmp_path, "rethinker-weights-") == []
    assert len(list(tmp_path.iterdir())) == 2

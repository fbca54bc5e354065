"""Staged files are whole, private and gone afterwards, also those of a process that was killed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from weights.buckets import manifest_of, pack
from weights.manifest import WeightManifest, WeightUpdateError
from weights.staging import StagingArea, remove_abandoned


def update(version: int = 1) -> tuple[WeightManifest, list[np.ndarray]]:
    pairs = list(pack([("a", torch.ones(100)), ("b", torch.zeros(100))], version, 400))
    return manifest_of(version, [bucket for bucket, _ in pairs]), [payload for _, payload in pairs]


def test_files_hold_the_payloads_and_are_the_owner_s_only(tmp_path: Path) -> None:
    manifest, payloads = update()
    with StagingArea(str(tmp_path)) as area:
        staged = area.stage(manifest, payloads)
        assert [Path(path).read_bytes() for path in staged.paths] == [payload.tobytes() for payload in payloads]
        assert staged.manifest == manifest
        for path in staged.paths:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(area.folder).st_mode) == 0o700


def test_discard_removes_one_update_and_close_the_rest(tmp_path: Path) -> None:
    area = StagingArea(str(tmp_path))
    first, second = area.stage(*update(1)), area.stage(*update(2))
    area.discard(first)
    area.discard(first)
    assert not any(os.path.exists(path) for path in first.paths)
    assert all(os.path.exists(path) for path in second.paths)
    area.close()
    area.close()
    assert list(tmp_path.iterdir()) == []


def test_wrong_bucket_leaves_nothing_behind(tmp_path: Path) -> None:
    manifest, payloads = update()
    payloads[1][-1] ^= 1
    with StagingArea(str(tmp_path)) as area:
        with pytest.raises(WeightUpdateError, match="bucket 1: the checksum is"):
            area.stage(manifest, payloads)
        assert list(area.folder.glob("**/*.safetensors")) == []
        with pytest.raises(WeightUpdateError, match="2 buckets were sent, 1 arrived"):
            area.stage(manifest, payloads[:1])


def test_same_version_can_be_staged_again(tmp_path: Path) -> None:
    with StagingArea(str(tmp_path)) as area:
        first, again = area.stage(*update()), area.stage(*update())
        assert set(first.paths).isdisjoint(again.paths)


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weights.staging._write", no_room)
    with StagingArea(str(tmp_path)) as area:
        with pytest.raises(WeightUpdateError, match=r"cannot stage \d+ bytes of version 1 .*No space left"):
            area.stage(*update())
        assert list(area.folder.glob("v1-*")) == []


def test_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with StagingArea(str(tmp_path)) as living:
        staged = living.stage(*update())
        with StagingArea(str(tmp_path)):
            assert all(os.path.exists(path) for path in staged.paths)


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
    assert remove_abandoned(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2

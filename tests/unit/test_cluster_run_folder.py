"""The run folder: whose it is, and that a checkpoint is whole or not there."""

import json

import pytest

from cluster.run_folder import RunFolder, RunFolderError


def test_a_new_folder_is_made_and_a_used_one_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(resume=False, overwrite=False)
    folder.config.write_text("run: {}\n")
    with pytest.raises(RunFolderError, match=r"holds a run; set run\.resume=true"):
        folder.open(resume=False, overwrite=False)
    folder.open(resume=True, overwrite=False)
    assert folder.config.exists()
    folder.open(resume=False, overwrite=True)
    assert not folder.config.exists()


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder(tmp_path / "run").open(resume=True, overwrite=False)


def test_a_checkpoint_in_writing_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(resume=False, overwrite=False)
    first = folder.commit_checkpoint(folder.begin_checkpoint(10), keep_last=2)
    half = folder.begin_checkpoint(20)
    assert folder.newest_checkpoint() == first
    folder.config.touch()
    folder.open(resume=True, overwrite=False)  # as after a crash in mid-write
    assert not half.exists() and folder.newest_checkpoint() == first


def test_the_newest_checkpoints_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(resume=False, overwrite=False)
    for step in (5, 10, 100, 1000):
        folder.commit_checkpoint(folder.begin_checkpoint(step), keep_last=2)
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["step-000100", "step-001000"]
    assert folder.newest_checkpoint().name == "step-001000"


def test_metrics_of_steps_done_again_are_cut(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 8)))
    folder.cut_metrics(5)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3, 4, 5]

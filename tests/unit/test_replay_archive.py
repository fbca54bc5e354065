"""Trajectories on disk, as a person with pyarrow finds them."""

import pyarrow as pa

from algorithms.schema import from_arrow, to_record_batch
from replay.archive import TrajectoryArchive
from tests.fakes import make_group


def batch(*names):
    return to_record_batch(trajectory for name in names for trajectory in make_group(name).trajectories)


def test_each_step_s_groups_are_one_file(tmp_path):
    archive = TrajectoryArchive(tmp_path / "trajectories")
    path = archive.write(0, [batch("p0"), batch("p1", "p2")])
    assert path.name == "step-000001.arrow"
    groups = [trajectory.group_id for trajectory in from_arrow(pa.ipc.open_file(path).read_all())]
    assert groups == ["p0@0", "p0@0", "p1@0", "p1@0", "p2@0", "p2@0"]


def test_a_step_done_again_replaces_its_file(tmp_path):
    for name in ("p0", "p1"):
        path = TrajectoryArchive(tmp_path).write(4, [batch(name)])
    assert [file.name for file in tmp_path.iterdir()] == ["step-000005.arrow"]
    assert {trajectory.prompt_id for trajectory in from_arrow(pa.ipc.open_file(path).read_all())} == {"p1"}

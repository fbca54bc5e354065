"""Trajectories on disk, as a person with pyarrow finds them."""

import pyarrow as pa

from algorithms.schema import from_arrow, to_record_batch
from replay.archive import TrajectoryArchive
from tests.fakes import make_group


def batch(*names):
    return to_record_batch(trajectory for name in names for trajectory in make_group(name).trajectories)


def test_each_draw_s_arrivals_are_one_file(tmp_path):
    archive = TrajectoryArchive(tmp_path / "trajectories")
    assert archive.write(0) is None
    archive.add(batch("p0"))
    archive.add(batch("p1", "p2"))
    path = archive.write(0)
    assert path is not None and path.name == "step-000001.arrow"
    groups = [trajectory.group_id for trajectory in from_arrow(pa.ipc.open_file(path).read_all())]
    assert groups == ["p0@0", "p0@0", "p1@0", "p1@0", "p2@0", "p2@0"]
    assert archive.write(1) is None


def test_a_step_done_again_replaces_its_file(tmp_path):
    for name in ("p0", "p1"):
        archive = TrajectoryArchive(tmp_path)
        archive.add(batch(name))
        path = archive.write(4)
    assert [file.name for file in tmp_path.iterdir()] == ["step-000005.arrow"]
    assert {trajectory.prompt_id for trajectory in from_arrow(pa.ipc.open_file(path).read_all())} == {"p1"}

"""What ends a run and what doesn't: bad rows are counted, named once and skipped; too many of them, or a collapse, end it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithms.schema import from_arrow
from cluster.metrics import read_metrics
from tests.integration.conftest import Workshop

BAD = {
    "corrupt-image": "image can't be decoded",
    "null-question": "missing question",
    "wrong-bytes": "unreadable question",
    "too-long": "tokens, images included, is over",
    "unbalanced-box": "unbalanced braces",
}
GOOD = 11  # rows beside those


def row(**values: object) -> dict[str, object]:
    plain = {"question": "What is 1+1?", "answer": "\\boxed{2}", "category": "arithmetic", "source": "test", "qid": "", "image": []}
    return plain | {"worked": "1+1=2. \\boxed{2}", "rethink": "1+1=2. \\boxed{2}"} | values


def spoil(source: Path, target: Path, *, keep: int) -> None:
    """Copy a data set's first rows and add one row of each kind that data sets in the wild have."""
    shutil.copytree(source, target)
    (target / "images" / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and no picture after it")
    good = pq.read_table(target / "data.parquet").select(list(row())).slice(0, keep).to_pylist()
    spoiled = [
        row(qid="corrupt-image", question="<image>what color is it?", image=["images/corrupt.png"]),
        row(qid="null-question", question=None),
        row(qid="wrong-bytes"),
        row(qid="too-long", question="What is " + "+".join("123" for _ in range(2000)) + "?"),
        row(qid="unbalanced-box", answer="\\boxed{2"),
    ]
    table = pa.Table.from_pylist([*spoiled, *good])
    questions = [value.encode() if value is not None else None for value in table.column("question").to_pylist()]
    questions[2] = b"\xff\xfe is not UTF-8"
    damaged = pa.array(questions, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("question"), "question", damaged), target / "data.parquet")


def words(folder: Path, model: Path) -> list[str]:
    return ["data.generate=", f"data.path={folder}", f"model.path={model}", "coldstart.steps=0", "evaluation.num_questions=8"]


@pytest.fixture(scope="module")
def troubled(workshop: Workshop, train, cold_start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that meets each bad row about three times, and then its guard: its folder and what it said.

    No effective sample size reaches 1 with stale batches, so with that threshold every step counts as collapsed.
    """
    spoil(workshop.folder / "data" / "train", data := tmp_path_factory.mktemp("troubled") / "data", keep=GOOD)
    guard = ("algorithm.max_staleness=1", "guard.min_ess=1", "guard.window_steps=4", "checkpoint.every_steps=1")
    result = train("troubled", *words(data, cold_start), *guard, "run.num_steps=12", "data.max_bad_fraction=0.5")
    assert result.returncode == 1, result.stdout[-4000:]
    return workshop.run_folder("troubled"), result.stdout


def test_bad_rows_are_counted_named_once_and_skipped(troubled: tuple[Path, str]):
    folder, _ = troubled
    log = (folder / "log.txt").read_text()
    for row_id, reason in BAD.items():
        named = [line for line in log.splitlines() if f"skipped {row_id}:" in line]
        assert len(named) == 1 and reason in named[0], (row_id, named)
    steps = read_metrics(folder / "metrics.jsonl")
    assert steps[-1]["data/bad_rows"] == len(BAD)
    tables = [pa.ipc.open_file(path).read_all() for path in sorted((folder / "trajectories").glob("*.arrow"))]
    trajectories = [trajectory for table in tables for trajectory in from_arrow(table)]
    assert not {trajectory.prompt_id for trajectory in trajectories} & BAD.keys()
    assert len(trajectories) == len(steps) * 8 * 4  # every step had its full number of groups
    assert len(steps) * 8 > 2 * GOOD  # of more than two passes over the rows


def test_a_collapse_stops_the_run_and_keeps_the_checkpoint_from_before(troubled: tuple[Path, str]):
    folder, said = troubled
    message = r"RunCollapsed: the median of ratio/ess over 4 steps is [0-9.]+, below guard.min_ess = 1; .*step-\d+ is from before"
    assert re.search(message, said)
    last = read_metrics(folder / "metrics.jsonl")[-1]["step"]
    kept = max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoint").iterdir())
    assert kept < last - 1 and last < 12


def test_too_many_bad_rows_end_the_run_with_the_first_of_them(workshop: Workshop, cold_start: Path, train, tmp_path: Path):
    """Those that can't even be read end it before an engine starts; the others as they turn up (tests/unit/test_cluster_bad_rows.py)."""
    spoil(workshop.folder / "data" / "train", tmp_path / "data", keep=80)
    result = train("too-bad", *words(tmp_path / "data", cold_start), "data.max_bad_fraction=0.02")
    assert result.returncode == 1
    assert "data.max_bad_fraction" in result.stdout and any(row_id in result.stdout for row_id in BAD)
    assert "starting the replay" not in result.stdout

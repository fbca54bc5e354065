"""Data that can't be used, on its way through a real run: counted, named once, skipped; too much of it ends the run."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def spoiled(workshop: Workshop, train) -> Path:
    """The spoiled copy; the run that made the data also made the cold start's model."""
    assert train("clean", "run.num_steps=1").returncode == 0
    target = workshop.folder / "spoiled"
    spoil(workshop.folder / "data" / "train", target, keep=27)
    return target


def words(spoiled: Path, workshop: Workshop) -> list[str]:
    model = next(path for path in (workshop.folder / "coldstart").iterdir() if not path.name.startswith("."))
    return ["data.generate=", f"data.path={spoiled}", f"model.path={model}", "coldstart.steps=0", "evaluation.num_questions=8"]


def test_bad_rows_are_counted_named_once_and_skipped(spoiled: Path, workshop: Workshop, train):
    result = train("spoiled", *words(spoiled, workshop), "run.num_steps=12", "data.max_bad_fraction=0.2")
    assert result.returncode == 0, result.stdout[-4000:]
    folder = workshop.run_folder("spoiled")
    log = (folder / "log.txt").read_text()
    for row_id, reason in BAD.items():
        named = [line for line in log.splitlines() if f"skipped {row_id}:" in line]
        assert len(named) == 1 and reason in named[0], (row_id, named)  # 12 steps of 8 prompts visit each row three times
    assert read_metrics(folder / "metrics.jsonl")[-1]["data/bad_rows"] == len(BAD)
    tables = [pa.ipc.open_file(path).read_all() for path in sorted((folder / "trajectories").glob("*.arrow"))]
    trajectories = [trajectory for table in tables for trajectory in from_arrow(table)]
    seen = {trajectory.prompt_id for trajectory in trajectories}
    assert not seen & BAD.keys()
    assert len(trajectories) == 12 * 8 * 4  # every step had its full number of groups


def test_too_many_bad_rows_end_the_run_with_the_first_of_them(spoiled: Path, workshop: Workshop, train):
    result = train("too-bad", *words(spoiled, workshop), "run.num_steps=12", "data.max_bad_fraction=0.02")
    assert result.returncode == 1
    assert "data.max_bad_fraction" in result.stdout and any(row_id in result.stdout for row_id in BAD)

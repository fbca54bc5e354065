"""A run in two stages: steps and settings follow on, forced rethinking happens in the second, and it is resumed between them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pyarrow as pa

from algorithms.schema import from_arrow
from cluster.metrics import read_metrics
from tests.integration.conftest import Workshop, interrupted

WORDS = (
    "run.stages=['name=grpo steps=2','name=rethinking steps=2 rethinking.enabled=true rethinking.fraction=1']",
    "rethinking.self_verification=[' Wait, let me check again.']",
    "rethinking.category_weights=[1,0,0]",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=4",
    "evaluation.mode=forced",
    "evaluation.num_questions=16",
)


def test_interrupted_between_the_stages_and_resumed(workshop: Workshop, cold_start: Path, train) -> None:
    """While the second stage's engines start; the first one's have ended by then."""
    starts = itertools.count(1)

    def second_start(line: str) -> bool:
        return line.startswith("starting the replay") and "done in" not in line and next(starts) == 2

    said = interrupted(workshop.command("staged", *WORDS), when=second_start)
    assert "after stage grpo" not in said and "run.resume=true" in said
    result = train("staged", *WORDS, "run.resume=true")
    assert result.returncode == 0, result.stdout[-4000:]
    assert "restoring step-000002" in result.stdout and "training grpo" not in result.stdout
    folder = workshop.run_folder("staged")
    check_run(folder)
    check_trajectories(folder)


def check_run(folder: Path) -> None:
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["rethinking/forced_fraction"] > 0 for row in rows] == [False, False, True, True]
    assert all("loss/nll" not in row for row in rows[:2])
    assert all("loss/nll" in row or row["replay/empty"] for row in rows[2:])
    assert all(row["staleness/max"] == 0 for row in rows)  # synchronous within and across the stages
    generated = [row["tokens/generated"] for row in rows]
    assert generated == sorted(set(generated))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4
    assert list(summary["evaluations"]) == ["before training", "after stage grpo", "after training"]
    for result in summary["evaluations"].values():
        figures = result["rethinking"]
        assert figures["forced"] + sum(figures["passed_over"].values()) == result["questions"] == 16
        assert sum(figures["transitions"].values()) == figures["forced"]
        assert figures["accuracy_bound"] >= max(figures["accuracy_none"], figures["accuracy_forced"])
        assert result["accuracy_lenient"] == figures["accuracy_forced"]
    assert "## Examples" in (folder / "rethinking.md").read_text()


def check_trajectories(folder: Path) -> None:
    forced, groups = 0, []
    for path in sorted((folder / "trajectories").glob("*.arrow")):
        table = pa.ipc.open_file(path).read_all()
        groups += table.column("group_id").unique().to_pylist()
        for trajectory in from_arrow(table):
            if len(trajectory.segments) == 3:
                forced += 1
                assert trajectory.y1_reward is not None and not trajectory.loss_mask.all()
    assert forced > 0 and len(groups) == len(set(groups)) == 4 * 8  # no prompt twice, none skipped

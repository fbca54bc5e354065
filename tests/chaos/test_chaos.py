"""The short version of `make chaos`: one fault of each kind that costs only seconds, into one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.__main__ import inject
from tests.chaos.disk import can_mount
from tests.chaos.faults import FAULTS
from tests.chaos.report import table

SHORT = ["replay actor: kill -9", "learner rank: kill -9", "control store: kill -9 and started again", "disk full on the run folder"]


@pytest.mark.timeout(900)
def test_a_run_gets_over_each_fault_and_loses_nothing(tmp_path: Path):
    series = [FAULTS[name] for name in SHORT if name != "disk full on the run folder" or can_mount()]
    verdict = inject(series, folder=tmp_path, seed=1)
    rows = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    told = table(rows, verdict)
    assert len(rows) == len(series) and all(row["recovered"] for row in rows), f"{told}\n{rows}"
    assert verdict.clean and verdict.consumed >= 32 * verdict.steps > 0, told

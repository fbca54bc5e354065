"""Data of one's own on its way through real engines: pass rates that are sampled and selected by, and a task of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.integration.conftest import ROOT, Workshop, clean_environment

SAMPLES = 4
PROMPTS = 48


def test_a_task_of_one_s_own_is_read_mixed_and_scored(workshop: Workshop, cold_start: Path, train) -> None:
    words = ["data.generate=", "data.path=40", "data.test_path=8", "data.reader=tests.own_task.rows", "data.scorer=tests.own_task.score"]
    words += ["data.category_weights={even: 3, odd: 1}", f"model.path={cold_start}", "coldstart.steps=0", "run.num_steps=1"]
    result = train("own", *words)
    assert result.returncode == 0, result.stdout
    folder = workshop.run_folder("own")
    grades = json.loads((folder / "summary.json").read_text())["grades"]
    assert grades["partial"] > 0 and not any(reason.startswith("error") for reason in grades), grades
    found = [row for file in (folder / "trajectories").rglob("*.arrow") for row in pa.ipc.open_file(file).read_all().to_pylist()]
    assert {row["category"] for row in found} == {"even", "odd"}
    assert len({row["prompt_id"] for row in found if row["category"] == "even"}) == 6  # of 8
    assert any(row["reward"] == 0.5 and not row["correct"] for row in found)


def test_passrate_rates_and_select_drops_the_easy_ones(workshop: Workshop, cold_start: Path, tmp_path: Path) -> None:
    table = pq.read_table(workshop.folder / "data" / "train" / "data.parquet")
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(table.slice(0, PROMPTS), source / "data.parquet")
    (source / "images").symlink_to(workshop.folder / "data" / "train" / "images")
    output, journal = tmp_path / "rated", tmp_path / "rated" / "pass_rates.journal"
    command = [sys.executable, "-m", "cluster", "data", "passrate", "quickstart", str(output)]
    words = [*workshop.overrides, "data.generate=", f"data.path={source}", "rollout.prompts_per_call=4"]
    command += [*words, "--model", str(cold_start), "--samples", str(SAMPLES)]

    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line)["row"] for line in journal.read_text().splitlines()[1:]]
    assert sorted(rows) == list(range(PROMPTS))
    rated = pq.read_table(output / "data.parquet")
    rates = rated.column("pass_rate").to_pylist()
    assert rated.drop_columns(["pass_rate"]).equals(table.slice(0, PROMPTS))
    assert all(rate * SAMPLES in range(SAMPLES + 1) for rate in rates)
    assert len(set(rates)) > 1  # a model that solves some and not others

    select = ["data", "select", str(output), str(tmp_path / "hard"), "data.pass_rate_column=pass_rate", "data.max_pass_rate=0.3"]
    subprocess.run([sys.executable, "-m", "cluster", *select], cwd=ROOT, env=clean_environment(), check=True, timeout=60)
    assert len(pq.read_table(tmp_path / "hard" / "data.parquet")) == sum(rate <= 0.3 for rate in rates)

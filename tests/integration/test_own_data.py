"""Data of one's own on its way through a real engine: pass rates that are sampled, although the actor dies, and selected by.

A task of one's own is what test_supervised_run.py trains on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.integration.conftest import ROOT, Descendants, Workshop, clean_environment

SAMPLES = 4
PROMPTS = 120  # enough to kill the actor in their midst
TIMEOUT_S = 300.0


def test_passrate_rates_although_the_actor_is_killed_and_select_drops_the_easy_ones(
    workshop: Workshop, cold_start: Path, tmp_path: Path
) -> None:
    table = pq.read_table(workshop.folder / "data" / "train" / "data.parquet")
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(table.slice(0, PROMPTS), source / "data.parquet")
    (source / "images").symlink_to(workshop.folder / "data" / "train" / "images")
    output, journal = tmp_path / "rated", tmp_path / "rated" / "pass_rates.journal"
    command = [sys.executable, "-m", "cluster", "data", "passrate", "quickstart", str(output)]
    words = [*workshop.overrides, "data.generate=", f"data.path={source}", "rollout.prompts_per_call=4"]
    command += [*words, "--model", str(cold_start), "--samples", str(SAMPLES)]

    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    started = Descendants(process.pid)
    deadline = time.monotonic() + TIMEOUT_S
    while not known(journal):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=60)[0]
        time.sleep(0.02)
    (actor,) = [found for found in started.alive() if " ".join(found.cmdline()).startswith("ray::RolloutActor")]
    actor.kill()
    assert len(known(journal)) < PROMPTS
    said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    started.must_be_gone()
    assert sorted(known(journal)) == list(range(PROMPTS))  # each once
    rated = pq.read_table(output / "data.parquet")
    rates = rated.column("pass_rate").to_pylist()
    assert rated.drop_columns(["pass_rate"]).equals(table.slice(0, PROMPTS))
    assert all(rate * SAMPLES in range(SAMPLES + 1) for rate in rates)
    assert len(set(rates)) > 1  # a model that solves some and not others

    select = ["data", "select", str(output), str(tmp_path / "hard"), "data.pass_rate_column=pass_rate", "data.max_pass_rate=0.3"]
    subprocess.run([sys.executable, "-m", "cluster", *select], cwd=ROOT, env=clean_environment(), check=True, timeout=60)
    assert len(pq.read_table(tmp_path / "hard" / "data.parquet")) == sum(rate <= 0.3 for rate in rates)


def known(journal: Path) -> list[int]:
    """Rows whose rates are in the journal, of whole lines."""
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return [json.loads(line)["row"] for line in lines[1:]]

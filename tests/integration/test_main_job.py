"""`rethinker train` as a user runs it: the real engines, from the command line to the run folder."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess

import pyarrow as pa
import pytest
import yaml

from algorithms.schema import from_arrow
from cluster.metrics import read_metrics
from tests.integration.conftest import ROOT, clean_environment

STEP_METRICS = {
    "reward/mean", "accuracy/strict", "accuracy/lenient", "effective_query_ratio", "replay/size", "replay/inserted", "replay/sampled",
    "replay/age_mean", "staleness/mean", "staleness/max", "ratio/mean", "ratio/clip_fraction", "ratio/ess", "kl/behavior_proximal",
    "loss/policy", "grad_norm", "tokens/generated", "tokens/trained", "time/rollout_s", "time/replay_wait_s", "time/update_s",
    "time/weight_sync_s", "time/step_s", "response/length_mean", "response/truncated_fraction",
    "kl/engine_mismatch", "weights/sent_bytes", "rollout/actors",
}  # fmt: skip


def test_the_run_folder_is_complete(asynchronous_run):
    folder, output = asynchronous_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["generated_tokens"] > 0
    assert summary["cold_start"]["questions"] == summary["final"]["questions"] == 40
    assert set(summary["final"]["categories"]) == {"shapes", "digits", "arithmetic"}
    assert {"ray", "torch", "vllm", "deepspeed", "transformers"} <= set(summary["versions"])
    assert sum(summary["wall_s"].values()) > 0
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["replay"]["mode"] == "fresh" and resolved["learner"]["num_ranks"] == 2
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-000006"]
    assert re.search(r"step 6/6 .*reward .*effective .*replay .*staleness .*s left", output)


def test_every_step_has_every_metric_in_both_places(asynchronous_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = asynchronous_run
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["kl/engine_mismatch"] < 1e-3 for row in rows)  # the engines have what both ranks have, after every sync
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for row in rows:
        if not row["replay/empty"]:
            assert row.keys() >= STEP_METRICS, STEP_METRICS - row.keys()
        assert all(math.isfinite(value) for value in row.values())
    for name in STEP_METRICS & rows[-1].keys():
        assert events.Scalars(name)[-1].value == pytest.approx(rows[-1][name], rel=1e-4, abs=1e-6)


def test_every_metric_is_documented(asynchronous_run):
    page = (ROOT / "docs/monitoring.md").read_text()
    names = {name for row in read_metrics(asynchronous_run[0] / "metrics.jsonl") for name in row} - {"step"}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_production_runs_ahead_and_no_further_than_allowed(asynchronous_run):
    rows = read_metrics(asynchronous_run[0] / "metrics.jsonl")
    assert max(row["staleness/max"] for row in rows) == 2  # the bound is reached, and never passed
    assert all(row["admission/dropped_groups"] == row["admission/length_bias"] == row["admission/difficulty_bias"] == 0 for row in rows)
    assert all(row["replay/groups_inserted"] <= (2 + row["step"]) * 8 for row in rows)  # (max_staleness + version + 1) steps of 8 prompts


def test_trajectories_are_readable_and_each_group_is_there_once(asynchronous_run):
    folder, _ = asynchronous_run
    seen: list[str] = []
    for path in sorted((folder / "trajectories").glob("*.arrow")):
        trajectories = from_arrow(pa.ipc.open_file(path).read_all())
        seen += [trajectory.trajectory_id for trajectory in trajectories]
        for trajectory in trajectories:
            assert len(trajectory.behavior_logprobs) == len(trajectory.loss_mask) == trajectory.num_response_tokens > 0
            spans = trajectory.version_spans
            assert spans[0].start == 0 and spans[-1].end == trajectory.num_response_tokens
            assert all(before.end == after.start for before, after in itertools.pairwise(spans))
    assert len(seen) == len(set(seen)) >= 6 * 8 * 4


def test_the_trained_model_loads_in_transformers(asynchronous_run):
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, _ = asynchronous_run
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder / "model")
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "What is 2+3?"}]}], add_generation_prompt=True
    )
    inputs = processor(text=[prompt], return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()


def test_a_checkpoint_is_evaluated_by_the_command(asynchronous_run, workshop, tmp_path):
    """The last one, which two ranks with ZeRO-2 wrote and which has the weights of the final evaluation."""
    folder, _ = asynchronous_run
    command = [word if word != "train" else "evaluate" for word in workshop.command("async", "rollout.num_actors=1")]
    command += ["--model", str(folder / "checkpoint/step-000006"), "--output", str(tmp_path / "evaluation")]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (again,) = json.loads((tmp_path / "evaluation" / "report.json").read_text())["benchmarks"][0]["results"]
    final = json.loads((folder / "summary.json").read_text())["final"]
    assert again["scored"] == 40
    assert again["accuracy_lenient"] == pytest.approx(final["accuracy_lenient"], abs=0.05)  # greedy; batches differ in rounding only

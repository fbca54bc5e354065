"""A run that is interrupted, by Ctrl-C and by kill -9, and resumed is the run that was never interrupted, bit for bit."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from cluster.metrics import read_metrics
from conf.loading import load_config
from tests.integration.conftest import ROOT, Descendants, Workshop, clean_environment, interrupted

WORDS = (
    "run.num_steps=9",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=1",
    "checkpoint.keep_best=1",
    "evaluation.every_steps=4",
    "replay.mode=fresh",
)
RAY_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}  # they look for their dead parent now and then only, and end by themselves

pytestmark = pytest.mark.timeout(1200)  # two fixtures make four starts between them


def killed(command: list[str], *, after: str) -> None:
    """Run a command, kill it after the line of a step, and see that nothing of it is left."""
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    started = Descendants(process.pid)
    assert process.stdout is not None
    deadline = time.monotonic() + 300
    for line in process.stdout:
        assert time.monotonic() < deadline, f"no {after} within 300 s"
        if line.startswith(after):
            break
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs([role for role in started.alive() if role.name()[:15] not in {a[:15] for a in RAY_AGENTS}], timeout=30)
    assert not alive, f"left behind: {[(role.pid, role.name()) for role in alive]}"


@pytest.fixture(scope="module")
def whole(workshop: Workshop, train, cold_start) -> Path:
    result = train("whole", *WORDS)
    assert result.returncode == 0, result.stdout[-4000:]
    return workshop.run_folder("whole")


@pytest.fixture(scope="module")
def resumed(workshop: Workshop, train, cold_start) -> Path:
    """Ended after step 3 by Ctrl-C, after step 7 of its successor by kill -9, each of them a step after the newest checkpoint."""
    said = interrupted(workshop.command("resumed", *WORDS), when=lambda line: line.startswith("step 3/"))
    assert "run.resume=true" in said
    killed(workshop.command("resumed", *WORDS, "run.resume=true"), after="step 7/")
    result = train("resumed", *WORDS, "run.resume=true")
    assert result.returncode == 0 and "restoring step-000006" in result.stdout, result.stdout[-4000:]
    refused = train("resumed", *WORDS, "run.resume=true", "learner.num_ranks=2")
    assert refused.returncode == 2 and "learner.num_ranks is 2" in refused.stdout
    return workshop.run_folder("resumed")


def measured(folder: Path) -> list[dict[str, float]]:
    """All metrics, step by step, but seconds and how the replay actor's memory is laid out."""
    left_out = ("time/", "replay/bytes", "replay/batches")
    return [{name: value for name, value in row.items() if not name.startswith(left_out)} for row in read_metrics(folder / "metrics.jsonl")]


def test_every_step_is_there_once_with_the_same_metrics(whole, resumed):
    rows = measured(resumed)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert sum(not row["replay/empty"] for row in rows) >= 6, "there was hardly anything to learn: the test shows nothing"
    assert rows == measured(whole)


def test_the_weights_are_the_same_bit_for_bit(whole, resumed):
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_every_sampled_token_and_its_log_prob_are_the_same(whole, resumed):
    seen: list[str] = []
    for path in sorted((whole / "trajectories").glob("*.arrow")):
        one, other = (pa.ipc.open_file(folder / "trajectories" / path.name).read_all() for folder in (whole, resumed))
        assert one.equals(other), f"{path.name} differs"
        seen += one.column("group_id").unique().to_pylist()
    assert len(seen) == len(set(seen)) == 9 * 8  # no prompt twice, none skipped


def test_the_evaluations_are_the_same(whole, resumed):
    one, other = (json.loads((folder / "summary.json").read_text())["evaluations"] for folder in (whole, resumed))
    assert list(one) == ["before training", "after step 4", "after step 8", "after training"] and one == other


def test_the_best_checkpoint_stays_besides_the_last(whole):
    evaluations = json.loads((whole / "summary.json").read_text())["evaluations"]
    best = max((4, 8), key=lambda step: (evaluations[f"after step {step}"]["accuracy_lenient"], step))
    assert sorted(path.name for path in (whole / "checkpoint").iterdir()) == [f"step-{best:06d}", "step-000009"]


def test_a_run_on_two_cores_stays_within_the_memory_that_is_promised(whole, workshop: Workshop):
    """The quickstart's roles, with the room that it gives to caches on top: at most 6 GiB."""
    small, shipped = load_config(str(whole / "config.yaml")), load_config("quickstart")
    caches = shipped.rollout.kv_cache_bytes - small.rollout.kv_cache_bytes
    store = shipped.cluster.object_store_bytes - small.cluster.object_store_bytes
    assert 2 * 2**30 < workshop.peaks["whole"] < 6 * 2**30 - caches - store, workshop.peaks

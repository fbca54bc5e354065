"""Weights & Biases (offline) and MLflow (a local store), with their real packages: two processes of one run, read back.

The packages are extras and not part of the environment; RETHINKER_TRACKERS names a folder that has them (`make trackers` makes one).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = os.environ.get("RETHINKER_TRACKERS", "")

pytestmark = pytest.mark.skipif(not PACKAGES, reason="RETHINKER_TRACKERS names no folder with wandb and mlflow; `make trackers` makes one")

TWO_PROCESSES = """
import sys
sys.path.append(sys.argv[2])  # behind our own environment, whose versions count
from cluster import trackers
from cluster.run_folder import RunFolder
from conf.loading import load_config
import cluster.metrics
cluster.metrics.RayMetrics = trackers.RayMetrics = lambda run: trackers.JsonLines(RunFolder(sys.argv[1]).path / "ray.jsonl")
words = [f"run.dir={sys.argv[1]}", "run.name=tracked", "report.trackers=[wandb,mlflow]", "report.project=trials"]
config = load_config("quickstart", words)
trackers.check_trackers(config)
folder = RunFolder(config.run.dir)
done = int(sys.argv[3])
with trackers.open_sinks(config, folder, step=done) as sinks:
    for step in range(done + 1, done + 3):
        sinks.write(step, {"reward/mean": step / 10, "ratio/ess": 1.0})
"""

READ_BACK = """
import glob, json, struct, sys
sys.path.append(sys.argv[2])
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}/mlflow.db")
(run,) = client.search_runs([client.get_experiment_by_name("trials").experiment_id])
points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "reward/mean")]
from wandb.proto import wandb_internal_pb2


def records(path):  # LevelDB's log format: blocks of 32 KiB; checksum, length, kind (whole, first, middle, last) before each piece
    data, at, piece = open(path, "rb").read(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield piece
            piece = b""


rows, ids = [], set()
for path in sorted(glob.glob(f"{sys.argv[1]}/wandb/offline-run-*/*.wandb")):
    for data in records(path):
        record = wandb_internal_pb2.Record(); record.ParseFromString(data)
        if record.HasField("run"):
            ids.add((record.run.run_id, record.run.project, record.run.display_name))
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append((items["_step"], items["reward/mean"]))
print(json.dumps({"mlflow": points, "status": run.info.status, "name": run.info.run_name, "seed": run.data.params["run.seed"],
                  "wandb": rows, "ids": sorted(ids)}))
"""


def python(code: str, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_resumed_run_goes_on_in_both_trackers(tmp_path):
    for done in ("0", "2"):
        python(TWO_PROCESSES, str(tmp_path), PACKAGES, done)
    found = json.loads(python(READ_BACK, str(tmp_path), PACKAGES).splitlines()[-1])
    points = [[1, 0.1], [2, 0.2], [3, 0.3], [4, 0.4]]
    assert found["mlflow"] == points and found["wandb"] == points
    assert (found["status"], found["name"], found["seed"]) == ("FINISHED", "tracked", "1")
    ((run_id, project, name),) = found["ids"]  # one run there, too
    assert run_id == (tmp_path / "wandb-id.txt").read_text() and (project, name) == ("trials", "tracked")

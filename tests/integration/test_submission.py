"""A run as a job of a real Ray cluster with token authentication: submitted by hand and by `rethinker submit`, watched, stopped, resumed.

One head and one run in two jobs serve all tests: the first job is stopped by Ray's own stop in the middle, the second goes on to the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.metrics import read_metrics
from tests.integration.cluster_head import BIN, CHROMIUM, Head, look, with_token
from tests.integration.conftest import ROOT, Descendants, Workshop
from tests.integration.prometheus_server import PROMETHEUS, board_expressions, loaded_rules, prometheus, query, rules

PATIENCE_S = 240.0
MORE_STEPS = 2  # of the second job
PICTURES = os.environ.get("RETHINKER_PICTURES", "")  # folder for the documentation's pictures; empty: none are made


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    started = Descendants(0)
    head = Head(num_cpus=4)
    try:
        yield head
    finally:
        head.close()
    started.must_be_gone(grace_s=15)


class Job:
    """The run of these tests, in its first job."""

    def __init__(self, head: Head, workshop: Workshop, model: Path) -> None:
        self.head = head
        self.folder = workshop.run_folder("submitted")
        self.words = [word for word in workshop.overrides if not word.startswith(("cluster.", "run.num_steps"))]
        self.words += [
            "run.name=submitted",
            f"run.dir={self.folder}",
            "evaluation.num_questions=8",
            "algorithm.max_staleness=1",
            "report.engine_metrics=true",
            "data.generate=",
            "data.scorer=tests.own_task.unhurried",
            "coldstart.steps=0",
            f"model.path={model}",
        ]
        command = ["python", "-m", "cluster", "train", "conf/experiment/quickstart.yaml", *self.words, "run.num_steps=100000"]
        # plainly, by Ray's own command
        submit = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--no-wait", "--submission-id", "by-hand"]
        submit += ["--working-dir", ".", "--", *command, "run.auto_resume=true"]
        done = subprocess.run(submit, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def details(self) -> dict[str, Any]:
        return self.head.get("/api/jobs/by-hand")

    @property
    def output(self) -> str:
        return self.head.get("/api/jobs/by-hand/logs")["logs"]

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not seen within {PATIENCE_S} s: {what}\n{self.output[-3000:]}"
            assert self.details["status"] in ("PENDING", "RUNNING"), self.output[-3000:]
            time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def job(head: Head, workshop: Workshop, cold_start: Path) -> Job:
    """In its third step or later."""
    job = Job(head, workshop, cold_start)
    job.until("the third step", lambda: "step 3/" in job.output)
    return job


@pytest.mark.parametrize(
    ("command", "token"),
    [
        pytest.param("submit", None, id="submit"),
        pytest.param("status", None, id="status", marks=pytest.mark.long),
        pytest.param("scale", None, id="scale", marks=pytest.mark.long),
        pytest.param("stop", None, id="stop"),
        pytest.param("submit", "0" * 32, id="submit-wrong", marks=pytest.mark.long),
        pytest.param("scale", "0" * 32, id="scale-wrong"),
    ],
)
def test_without_the_token_everything_is_refused(job: Job, command: str, token: str | None) -> None:
    head = job.head
    environment = {name: value for name, value in head.environment.items() if not name.startswith("RAY_AUTH")}
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    else:
        environment |= {"RAY_AUTH_MODE": "disabled"}
    words = {"submit": ["quickstart", f"run.dir={job.folder}", "--address", head.dashboard], "scale": [str(job.folder), "--rollouts", "2"]}
    done = head.rethinker(command, *words.get(command, [str(job.folder)]), environment=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert "RAY_AUTH_MODE=token" in done.stderr and head.token not in done.stderr


def test_status_and_scale_reach_the_job_with_the_token(job: Job) -> None:
    done = job.head.rethinker("status", str(job.folder), "--json")
    status = json.loads(done.stdout)
    assert (status["run"], status["phase"]) == ("submitted", "training") and status["step"] >= 3
    by_name = job.head.rethinker("status", "submitted", "--address", job.head.node_address)
    assert by_name.returncode == 0 and "submitted" in by_name.stdout, by_name.stderr
    from_elsewhere = job.head.rethinker("status", str(job.folder), "--json", "--address", job.head.dashboard)
    assert from_elsewhere.returncode == 0, from_elsewhere.stdout + from_elsewhere.stderr
    assert json.loads(from_elsewhere.stdout)["run"] == "submitted"
    done = job.head.rethinker("scale", str(job.folder), "--rollouts", "1")  # as many as there are: test_supervised_run.py scales
    assert done.returncode == 0 and "1 rollout actors are wanted already" in done.stdout, done.stderr


def test_the_job_says_what_it_is_and_how_far_it_has_come(job: Job) -> None:
    told = job.details["metadata"]
    assert told["run"] == "submitted" and told["run_dir"] == str(job.folder) and len(told["config_hash"]) == 16
    assert told["phase"] == "training" and told["progress"].startswith("step ")
    step = int(told["progress"].split()[1].split("/")[0])
    job.until("its progress", lambda: int(job.details["metadata"]["progress"].split()[1].split("/")[0]) > step)


def test_a_second_job_in_the_same_folder_is_refused(job: Job) -> None:
    done = job.head.rethinker("submit", "quickstart", *job.words, "--address", job.head.dashboard)
    assert done.returncode == 2 and "belongs to job by-hand, which is running" in done.stderr, done.stderr


def test_actors_say_who_they_are_and_where(job: Job) -> None:
    actors = job.head.get("/logical/actors")["data"]["actors"].values()
    names = {actor["reprName"] for actor in actors if actor["state"] == "ALIVE"}
    node = job.head.node
    wanted = {f"RolloutActor(replica=0, node={node})", f"LearnerRank(rank=0/1, node={node})"}
    assert names >= wanted | {f"ReplayActor(mode=episode, node={node})"}, names


def on_the_endpoint(job: Job, metric: str, *labels: str) -> list[float]:
    with urllib.request.urlopen(f"http://{job.head.node}:{job.head.metrics_port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith(f"{metric}{{") and all(label in line for label in labels)]


def test_the_engines_own_metrics_are_on_ray_s_endpoint(job: Job) -> None:
    labels = ("ray_vllm_generation_tokens_total", 'model_name="submitted/rollout-0"')
    (tokens,) = job.until("vLLM's count of generated tokens", lambda: on_the_endpoint(job, *labels))
    assert tokens > 0


def test_the_version_that_an_actor_holds_is_on_ray_s_endpoint(job: Job) -> None:
    labels = ("ray_rethinker_role_version", 'run="submitted"', 'role="rollout"', 'rank="0"')
    job.until("a version made by a step", lambda: [version for version in on_the_endpoint(job, *labels) if version >= 1])


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on this machine (Debian's package prometheus)")
def test_every_expression_of_board_and_rules_returns_data_of_the_run(job: Job, tmp_path) -> None:
    node = job.head.node
    with prometheus(f"{node}:{job.head.metrics_port}", tmp_path / "prometheus") as server:
        wanted = board_expressions("submitted") + sorted({n for rule in rules() for n in re.findall(r"ray_rethinker_\w+", rule["expr"])})
        assert len(wanted) > 40
        job.until("rates", lambda: query(server, 'deriv(ray_rethinker_tokens_generated{run="submitted"}[5m]) > 0'))
        job.until("rates of the engines", lambda: query(server, "rate(ray_vllm_generation_tokens_total[5m]) > 0"))
        missing, deadline = wanted, time.monotonic() + PATIENCE_S
        while missing and time.monotonic() < deadline:  # some come with the first step that had something to learn from
            missing = [expression for expression in missing if not query(server, expression)]
            time.sleep(1.0)
        assert missing == []
        assert loaded_rules(server) == {rule["alert"] for rule in rules()}


def test_the_timeline_has_every_role_s_phases(job: Job) -> None:
    environment = job.head.environment | {"RAY_ADDRESS": job.head.node_address}
    code = "import json, ray; ray.init(log_to_driver=False); print(json.dumps(sorted({e.get('cat', '') for e in ray.timeline()})))"
    done = subprocess.run([str(BIN / "python"), "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    phases = {"RolloutActor.rollout", "RolloutActor.update_weights", "LearnerRank.update", "LearnerRank.publish", "ReplayActor.sample"}
    assert {f"task::{phase}" for phase in phases} <= set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian's package chromium)")
def test_a_browser_shows_the_job_and_its_actors(job: Job, tmp_path: Path) -> None:
    with with_token(job.head) as door:
        page = look(f"{door}/#/actors", tmp_path / "actors")
        assert "LearnerRank(rank=0/1" in page and "RolloutActor(replica=0" in page and "ReplayActor(mode=episode" in page
        page = look(f"{door}/#/jobs/by-hand", tmp_path / "job")
        assert "config_hash" in page
        if PICTURES:
            for name, path in (("dashboard_actors", "actors"), ("dashboard_job", "jobs/by-hand")):
                look(f"{door}/#/{path}", tmp_path / name, picture=Path(PICTURES) / f"{name}.png")


def test_a_stopped_job_leaves_a_checkpoint_and_the_same_job_again_goes_on(job: Job) -> None:
    stop = [str(BIN / "ray"), "job", "stop", "--address", job.head.dashboard, "by-hand"]
    done = subprocess.run(stop, env=job.head.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert job.details["status"] == "STOPPED"
    last = [row["step"] for row in read_metrics(job.folder / "metrics.jsonl")][-1]
    assert (job.folder / "checkpoint" / f"step-{last:06d}").is_dir(), job.output[-2000:]

    words = [*job.words, f"run.num_steps={last + MORE_STEPS}", "--address", job.head.dashboard, "--follow"]
    done = job.head.rethinker("submit", "conf/experiment/quickstart.yaml", *words, timeout_s=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"restoring step-{last:06d}" in done.stdout and done.stdout.rstrip().endswith("succeeded")
    assert [row["step"] for row in read_metrics(job.folder / "metrics.jsonl")] == list(range(1, last + MORE_STEPS + 1))
    assert json.loads((job.folder / "summary.json").read_text())["steps"] == last + MORE_STEPS


def test_no_secret_is_in_what_the_run_has_written(job: Job) -> None:
    files = [path for path in job.folder.rglob("*") if path.is_file()] + [job.head.folder / "head.out"]
    assert len(files) > 10
    assert [path for path in files if job.head.token.encode() in path.read_bytes()] == []
    assert job.head.token not in job.output and job.head.token not in json.dumps(job.details)
    assert all(path.stat().st_mode & 0o002 == 0 for path in [job.folder, *job.folder.rglob("*")])

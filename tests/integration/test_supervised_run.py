"""One small run over a task of one's own that is looked at, scaled, hurt and stopped while it goes on; then it goes on from there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray

from cluster.contact import connected_to, find
from cluster.metrics import read_metrics
from tests.integration.conftest import ROOT, Descendants, Workshop, clean_environment

PATIENCE_S = 240.0  # an engine starts in 15 s, on a machine with other work in minutes
WORDS = (
    "run.num_steps=100000", "rollout.num_actors=1", "cluster.num_cpus=3", "algorithm.max_staleness=2", "replay.mode=fresh",
    "algorithm.updates_per_step=1", "checkpoint.every_steps=20", "supervision.heartbeat_s=1", "supervision.suspect_after=2",
    "supervision.dead_after=5", "guard.enabled=false", "evaluation.num_questions=8", "coldstart.steps=0",
    "data.generate=", "data.path=40", "data.test_path=8", "data.reader=tests.own_task.rows", "data.scorer=tests.own_task.score",
    "data.category_weights={even: 3, odd: 1}",
)  # fmt: skip


class Running:
    """A `rethinker train` in the background, and the other commands."""

    def __init__(self, workshop: Workshop, model: Path, name: str, *words: str) -> None:
        self.folder = workshop.run_folder(name)
        self.log = workshop.folder / f"{name}.out"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                workshop.command(name, f"model.path={model}", *words),
                cwd=ROOT,
                env=clean_environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.descendants = Descendants(self.process.pid)
        self._connection: AbstractContextManager[Any] | None = None

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster", words[0], str(self.folder), *words[1:]]
        return subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=90)

    def status(self) -> dict[str, Any]:
        """As the command tells it; asked by a connection that stays, which the command's own start-up would make slow."""
        if self._connection is None:
            self._connection = connected_to(find(str(self.folder), None))
            self._desk = self._connection.__enter__()
        status = ray.get(self._desk.look.remote(), timeout=30)["status"]
        time.sleep(0.3)
        return status

    def disconnect(self) -> None:
        """Before the cluster ends."""
        if self._connection is not None:
            self._connection.__exit__(None, None, None)
            self._connection = None

    def until(self, what: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            status = self.status()
            if condition(status):
                return status
        pytest.fail(f"not seen within {PATIENCE_S} s: {what}\n{json.dumps(status, indent=1)}\n{self.log.read_text()[-3000:]}")

    def rollout_processes(self) -> list[psutil.Process]:
        """Actors with a replica's name, youngest last."""
        found = self.descendants.such(lambda process: "RolloutActor" in " ".join(process.cmdline()))
        return sorted(found, key=lambda process: process.create_time())

    @staticmethod
    def engines(actor: psutil.Process) -> list[psutil.Process]:
        return [child for child in actor.children(recursive=True) if child.name().startswith("VLLM")]


@pytest.fixture(scope="module")
def running(workshop: Workshop, cold_start: Path) -> Iterator[Running]:
    run = Running(workshop, cold_start, "supervised", *WORDS)
    try:
        deadline = time.monotonic() + 300
        while "step 1/" not in run.log.read_text():
            assert run.process.poll() is None and time.monotonic() < deadline, run.log.read_text()[-4000:]
            time.sleep(0.5)
        yield run
    finally:
        run.disconnect()
        run.process.kill()
        run.process.wait(30)


def in_service(number: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status["rollouts"]["in_service"] == number


def test_status_tells_people_and_programs(running: Running) -> None:
    asked = running.ask("status", "--json")
    assert asked.returncode == 0, asked.stderr
    status = json.loads(asked.stdout)
    assert status["run"] == "supervised" and status["phase"] == "training" and status["step"] >= 1 and status["age_s"] < 10
    assert {(role["kind"], role["state"]) for role in status["roles"]} >= {("rollout", "healthy")}
    table = running.ask("status").stdout
    assert re.search(r"supervised +training +step \d+/100000", table) and "rollout 0" in table and "healthy" in table


def test_a_stopped_engine_is_replaced_and_reported_and_the_run_waits_and_says_so_meanwhile(running: Running) -> None:
    (actor,) = running.rollout_processes()
    for engine in running.engines(actor):
        engine.send_signal(signal.SIGSTOP)
    running.until("a suspect", lambda s: any(role["state"] == "suspect" for role in s["roles"]))
    alone = running.until("that it says so", lambda s: any("no rollout actor is in service" in notice for notice in s["notices"]))
    status = running.until("a replacement", lambda s: s["num_deaths"] == 1 and in_service(1)(s))
    (death,) = status["deaths"]
    assert "its engine's process is stopped, 5 heartbeats of 1 s in a row" in death["cause"]
    assert death["pid"] == actor.pid and death["node"] and death["last_log_lines"]
    assert max(role["restarts"] for role in status["roles"] if role["kind"] == "rollout") == 1
    assert status["restarts_left"]["rollout"] == 15
    running.until("two more steps", lambda s: s["step"] >= alone["step"] + 4)  # two could be made of what was there


def test_scaled_up_it_has_as_many_as_there_is_room_for_and_says_what_is_missing(running: Running) -> None:
    said = running.ask("scale", "--rollouts", "3")
    assert said.returncode == 0 and "3 rollout actors instead of 1" in said.stdout
    status = running.until("two replicas", lambda s: in_service(2)(s) and s["notices"])
    assert status["rollouts"] == {"in_service": 2, "target": 3, "starting": 1, "leaving": 0}
    assert re.fullmatch(r"rollout \d: 1 x 1 CPU wanted; free are [0-9.]+: nothing", status["notices"][0])
    refused = running.ask("scale", "--rollouts", "5000")
    assert refused.returncode == 2 and "5000 is no number of rollout actors" in refused.stderr


def test_scaled_down_one_finishes_its_prompts_and_leaves(running: Running) -> None:
    assert running.ask("scale", "--rollouts", "1").returncode == 0
    alone = {"in_service": 1, "target": 1, "starting": 0, "leaving": 0}
    status = running.until("one", lambda s: s["rollouts"] == alone and not s["notices"] and len(running.rollout_processes()) == 1)
    assert status["num_deaths"] == 1  # who leaves or isn't needed any more has not died


def test_stopped_it_has_a_checkpoint_and_lost_and_doubled_nothing(running: Running) -> None:
    running.disconnect()
    said = running.ask("stop")
    assert said.returncode == 0 and re.search(r"ends with a checkpoint once the step under way, \d+, is done", said.stdout)
    assert running.process.wait(120) == 0, running.log.read_text()[-3000:]
    running.descendants.must_be_gone()
    step = read_metrics(running.folder / "metrics.jsonl")[-1]["step"]
    assert (running.folder / "checkpoint" / f"step-{step:06d}").is_dir()
    over = running.ask("status")
    assert over.returncode == 2 and f"is over (stopped after step {step}" in over.stderr
    rows = read_metrics(running.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step + 1))
    assert [row["rollout/groups"] for row in rows] == [8] * step
    assert max(row["staleness/max"] for row in rows) <= 2
    groups = consumed(running.folder)
    assert len(groups) == len(set(groups)) == 8 * step  # none lost, none twice


def test_the_task_of_one_s_own_was_read_mixed_and_scored(running: Running) -> None:
    first, *_ = files = sorted((running.folder / "trajectories").glob("*.arrow"))
    even = {row["prompt_id"] for row in pa.ipc.open_file(first).read_all().to_pylist() if row["category"] == "even"}
    assert len(even) == 6  # of 8, as data.category_weights says
    rows = [row for file in files for row in pa.ipc.open_file(file).read_all().select(["category", "reward", "correct"]).to_pylist()]
    assert {row["category"] for row in rows} == {"even", "odd"}
    assert {(row["reward"], row["correct"]) for row in rows} >= {(0.5, False), (1.0, True)}  # half a point for any number


def test_it_goes_on_from_there_and_too_many_deaths_end_it_with_the_first_cause(
    running: Running, workshop: Workshop, cold_start: Path
) -> None:
    before = read_metrics(running.folder / "metrics.jsonl")[-1]["step"]
    again = Running(workshop, cold_start, "supervised", *WORDS, "run.resume=true", "supervision.max_restarts=0")
    try:
        again.folder = running.folder
        deadline = time.monotonic() + 180
        while f"step {before + 2}/" not in again.log.read_text():
            assert again.process.poll() is None and time.monotonic() < deadline, again.log.read_text()[-4000:]
            time.sleep(0.5)
        (actor,) = again.rollout_processes()
        os.kill(actor.pid, signal.SIGKILL)
        assert again.process.wait(90) == 1
        told = again.log.read_text()
        assert re.search(r"the run failed: RestartBudgetExceeded: rollout actor 0: its process ended .*supervision.max_restarts = 0", told)
        again.descendants.must_be_gone()
    finally:
        again.process.kill()
    rows = read_metrics(again.folder / "metrics.jsonl")
    assert (again.folder / "checkpoint" / f"step-{rows[-1]['step']:06d}").is_dir(), (again.folder / "log.txt").read_text()[-6000:]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    groups = consumed(again.folder)
    assert len(groups) == len(set(groups)) == 8 * len(rows)
    assert "is over (failed: RestartBudgetExceeded: rollout actor 0" in again.ask("stop").stderr


def consumed(folder: Path) -> list[str]:
    """Group ids in the order in which steps consumed them."""
    return [
        group
        for path in sorted((folder / "trajectories").glob("*.arrow"))
        for group in pa.ipc.open_file(path).read_all().column("group_id").unique().to_pylist()
    ]

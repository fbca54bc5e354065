"""A run in two stages that is interrupted, by Ctrl-C or kill -9, and resumed is the run that never was, bit for bit.

The run is the shipped recipe `rethinking`, scaled down: forced rethinking happens in the second stage.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from algorithms.schema import from_arrow
from cluster.metrics import read_metrics
from conf.loading import load_config
from tests.integration.conftest import ROOT, Descendants, Workshop, clean_environment, interrupted

RECIPE = "rethinking"
STEPS = 6
QUESTIONS = 16
WORDS = (
    f"run.stages=[{', '.join(repr(re.sub(r'steps=[0-9]+', 'steps=3', stage)) for stage in load_config(RECIPE).run.stages)}]",
    "rethinking.fraction=1",
    "coldstart.steps=0",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=3",
    "checkpoint.keep_best=1",
    "evaluation.every_steps=2",
    f"evaluation.num_questions={QUESTIONS}",
    "replay.mode=fresh",
)
EVALUATIONS = ["before training", "after step 2", "after stage grpo", "after step 4", "after training"]
RAY_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}  # they look for their dead parent now and then only, and end by themselves

pytestmark = pytest.mark.timeout(1200)  # two fixtures make several starts between them


def killed(command: list[str], *, after: str) -> str:
    """Run a command, kill it after the line of a step, and see that nothing of it is left; what it wrote until then."""
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    started = Descendants(process.pid)
    assert process.stdout is not None
    deadline = time.monotonic() + 300
    written = ""
    for line in process.stdout:
        written += line
        assert time.monotonic() < deadline, f"no {after} within 300 s: {written}"
        if line.startswith(after):
            break
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(started.such(lambda role: role.name()[:15] not in {a[:15] for a in RAY_AGENTS}), timeout=30)
    assert not alive, f"left behind: {[(role.pid, role.name()) for role in alive]}"
    return written


@pytest.fixture(scope="module")
def whole(workshop: Workshop, train, cold_start) -> Path:
    result = train("whole", *WORDS, f"model.path={cold_start}", recipe=RECIPE)
    assert result.returncode == 0, result.stdout[-4000:]
    return workshop.run_folder("whole")


INSIDE, TWICE = "between the stages, Ctrl-C in the second", "Ctrl-C between the stages, kill -9 in the second"


@pytest.fixture(scope="module", params=[INSIDE, pytest.param(TWICE, marks=pytest.mark.long)])
def resumed(request: pytest.FixtureRequest, workshop: Workshop, train, whole, cold_start) -> Path:
    """A run of the same settings, ended before its time, a step after a checkpoint at last."""
    name, words = f"resumed-{request.param_index}", [*WORDS, f"model.path={cold_start}"]
    if request.param == INSIDE:
        as_if_ended_between_the_stages(whole, workshop.run_folder(name))
        command = workshop.command(name, *words, "run.resume=true", recipe=RECIPE)
        said = interrupted(command, when=lambda line: line.startswith("step 5/"))
        assert "restoring step-000003" in said and "training grpo" not in said, said
        assert "after stage grpo" in said and "run.resume=true" in said
    else:
        said = interrupted(workshop.command(name, *words, recipe=RECIPE), when=second_start())
        assert "after stage grpo" not in said and "run.resume=true" in said
        said = killed(workshop.command(name, *words, "run.resume=true", recipe=RECIPE), after="step 5/")
        assert "restoring step-000003" in said and "training grpo" not in said, said
    result = train(name, *words, "run.resume=true", recipe=RECIPE)
    assert result.returncode == 0 and "restoring step-000004" in result.stdout, result.stdout[-4000:]
    return workshop.run_folder(name)


def as_if_ended_between_the_stages(run: Path, folder: Path) -> None:
    """Copy a run, but what it is known by to have gone on; metrics, trajectories and events of later steps still lie about."""
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    for later in ("model", "checkpoint/step-000004", "checkpoint/step-000006"):
        shutil.rmtree(folder / later)


def second_start() -> Callable[[str], bool]:
    """Whether a line says that engines start for the second time; the first stage's have ended by then."""
    starts = itertools.count(1)
    return lambda line: line.startswith("starting the replay") and "done in" not in line and next(starts) == 2


def measured(folder: Path) -> list[dict[str, float]]:
    """All metrics, step by step, but seconds and how the replay actor's memory is laid out."""
    left_out = ("time/", "replay/bytes", "replay/batches")
    return [{name: value for name, value in row.items() if not name.startswith(left_out)} for row in read_metrics(folder / "metrics.jsonl")]


def evaluations_of(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "summary.json").read_text())["evaluations"]


def test_every_step_is_there_once_with_the_same_metrics(whole, resumed):
    rows = measured(resumed)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert sum(not row["replay/empty"] for row in rows) >= 4, "there was hardly anything to learn: the test shows nothing"
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
    assert len(seen) == len(set(seen)) == STEPS * 8  # no prompt twice, none skipped


def test_the_evaluations_are_the_same(whole, resumed):
    one, other = evaluations_of(whole), evaluations_of(resumed)
    assert list(one) == EVALUATIONS and one == other


def test_the_best_checkpoint_stays_besides_the_last(whole):
    evaluations = evaluations_of(whole)
    best = max((2, 4), key=lambda step: (evaluations[f"after step {step}"]["accuracy_lenient"], step))
    kept = sorted({best, 3, 4, STEPS})  # of 2, 3, 4 and 6 the last three
    assert [path.name for path in sorted((whole / "checkpoint").iterdir())] == [f"step-{step:06d}" for step in kept]


def test_the_second_stage_has_its_settings_and_goes_on_where_the_first_ended(resumed):
    rows = read_metrics(resumed / "metrics.jsonl")
    assert [row["rethinking/forced_fraction"] > 0 for row in rows] == [False] * 3 + [True] * 3
    assert all("loss/nll" not in row for row in rows[:3])
    assert all("loss/nll" in row or row["replay/empty"] for row in rows[3:])
    assert all(row["staleness/max"] == 0 for row in rows)  # synchronous within and across the stages
    generated = [row["tokens/generated"] for row in rows]
    assert generated == sorted(set(generated))
    assert json.loads((resumed / "summary.json").read_text())["steps"] == STEPS


def test_what_forced_rethinking_did_is_counted_in_every_evaluation(resumed):
    for result in evaluations_of(resumed).values():
        figures = result["rethinking"]
        assert figures["forced"] > 0, "no answer was gone on with: the figures below show nothing"
        assert figures["forced"] + sum(figures["passed_over"].values()) == result["questions"] == QUESTIONS
        assert sum(figures["transitions"].values()) == figures["forced"]
        assert figures["accuracy_bound"] >= max(figures["accuracy_none"], figures["accuracy_forced"])
        assert result["accuracy_lenient"] == figures["accuracy_forced"]
    assert "## Examples" in (resumed / "rethinking.md").read_text()


def test_forced_trajectories_are_of_the_second_stage_and_don_t_train_their_triggers(resumed):
    forced = 0
    for path in sorted((resumed / "trajectories").glob("*.arrow")):
        for trajectory in from_arrow(pa.ipc.open_file(path).read_all()):
            if len(trajectory.segments) == 3:
                forced += 1
                assert trajectory.y1_reward is not None and not trajectory.loss_mask.all()
    assert forced > 0


def test_a_run_on_two_cores_stays_within_the_memory_that_is_promised(whole, workshop: Workshop):
    """The quickstart's roles, with the room that it gives to caches on top: at most 6 GiB."""
    small, shipped = load_config(str(whole / "config.yaml")), load_config("quickstart")
    caches = shipped.rollout.kv_cache_bytes - small.rollout.kv_cache_bytes
    store = shipped.cluster.object_store_bytes - small.cluster.object_store_bytes
    assert 2 * 2**30 < workshop.peaks["whole"] < 6 * 2**30 - caches - store, workshop.peaks

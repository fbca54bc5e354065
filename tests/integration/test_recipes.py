"""The shipped recipes, each run from its file with the tiny model and sizes scaled down, through the same code.

`make recipes` and `make test-long` run them; `make test` has one of them in test_exact_resume.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.metrics import read_metrics
from conf.loading import load_config, shipped_names
from tests.data_fixtures import CHARTS, GEOMETRY, SCIENCE, VIRL39K_SCHEMA
from tests.integration.conftest import ROOT, Workshop, clean_environment

TRAINED = [name for name in shipped_names() if name not in ("default", "benchmarks")]
ROWS = 240
CATEGORIES = {"shapes": GEOMETRY, "digits": SCIENCE, "arithmetic": CHARTS}  # arithmetic has no pictures


@pytest.fixture(scope="module")
def virl39k(workshop: Workshop, cold_start: Path) -> Path:
    """Questions of the workshop in ViRL39K's file, half of them always solved by its 32B model."""
    folder = workshop.folder / "virl39k"
    folder.mkdir()
    rows = pq.read_table(workshop.folder / "data" / "train" / "data.parquet").to_pylist()
    chosen = [{**row, "category": CATEGORIES[row["category"]], "PassRate_32BTrained": float(i % 2)} for i, row in enumerate(rows[:ROWS])]
    pq.write_table(pa.Table.from_pylist(chosen, schema=VIRL39K_SCHEMA), folder / "39Krelease.parquet")
    (folder / "images").symlink_to(workshop.folder / "data" / "train" / "images")
    return folder


def scaled_down(name: str, workshop: Workshop, model: Path, virl39k: Path) -> list[str]:
    """The words that make a recipe small: sizes and places change, what is computed stays."""
    recipe = load_config(name)
    words = [word for word in workshop.overrides if not word.startswith(("coldstart.", "run.", "algorithm.", "data."))]
    words += [f"run.name=recipe-{name}", f"run.dir={workshop.folder}/runs/recipe-{name}", f"data.image_cache={workshop.folder}/images"]
    steps = [re.sub(r"steps=\d+", "steps=1", stage) for stage in recipe.run.stages]
    words += [f"run.stages=[{', '.join(repr(stage) for stage in steps)}]"] if steps else ["run.num_steps=2"]
    words += ["algorithm.prompts_per_step=16", "rollout.prompts_per_call=8", "evaluation.num_questions=16"]
    if recipe.data.generate:
        words += [word for word in workshop.overrides if word.startswith(("coldstart.", "data."))]
    else:
        updates = recipe.algorithm.updates_per_step
        batch = None if recipe.replay.mode.value == "none" else 16 * recipe.algorithm.samples_per_prompt // updates
        words += [f"model.path={model}", "model.dtype=float32", "model.max_prompt_tokens=256", "model.max_response_tokens=64"]
        words += ["model.min_pixels=784", "model.max_pixels=12544", f"data.path={virl39k}", "cluster.device=cpu"]
        words += [f"algorithm.batch_size={'null' if batch is None else batch}", "rollout.max_batched_tokens=4096"]
        words += ["learner.microbatch_tokens=4096", f"rollout.tensor_parallel_size={min(recipe.rollout.tensor_parallel_size, 2)}"]
        # what is spread over many GPUs is spread over two processes, so that ZeRO-3 and several actors have something to do
        words += [
            f"rollout.num_actors={min(recipe.rollout.num_actors, 1)}",
            f"learner.num_ranks={2 if recipe.learner.num_ranks > 8 else 1}",
        ]
        words += ["cluster.num_cpus=4"]
    return words


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_runs_scaled_down(name: str, workshop: Workshop, cold_start: Path, virl39k: Path) -> None:
    words = scaled_down(name, workshop, cold_start, virl39k)
    command = [sys.executable, "-m", "cluster", "train", name, *words]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder, recipe = workshop.folder / "runs" / f"recipe-{name}", load_config(name)
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and json.loads((folder / "summary.json").read_text())["steps"] == 2
    assert all(row["staleness/max"] == 0 for row in rows)  # all recipes are synchronous
    assert all(row["kl/engine_mismatch"] < 1e-3 for row in rows)  # of the 72B recipe over a tensor-parallel engine of two processes
    assert (folder / "model" / "config.json").is_file()
    rethinks = [stage for stage in recipe.run.stages if "rethinking.enabled=true" in stage]
    assert (rows[-1]["rethinking/forced_fraction"] > 0) == bool(rethinks)
    if recipe.replay.mode.value == "none":
        assert not any(row["replay/empty"] for row in rows)  # plain GRPO takes prompts without a signal, too
    if not recipe.data.generate:
        selected_as_the_recipe_says(name, folder, virl39k)


def selected_as_the_recipe_says(name: str, folder: Path, virl39k: Path) -> None:
    """Every prompt that was trained on is one that the arm's selection keeps."""
    given = {row["qid"]: row for row in pq.read_table(virl39k / "39Krelease.parquet").to_pylist()}
    tables = [pa.ipc.open_file(path).read_all() for path in (folder / "trajectories").rglob("*.arrow")]
    asked = {prompt for table in tables for prompt in table.column("prompt_id").to_pylist()}
    assert asked and all(given[prompt]["PassRate_32BTrained"] < 0.99 for prompt in asked)
    kinds = {given[prompt]["category"] for prompt in asked}
    if name in ("virl39k_13k", "virl39k_11k"):
        assert all(given[prompt]["image"] for prompt in asked) and CHARTS not in kinds
    if name == "virl39k_11k":
        assert kinds == {GEOMETRY}

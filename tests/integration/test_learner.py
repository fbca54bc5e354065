"""The learner over the real DeepSpeed, ZeRO 0-3 on one and two ranks: the numbers of plain PyTorch, and the traps on the way.

With two ranks the second one's trajectories have no image and are fewer, so that its micro-batches lack a picture and are fewer too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from learner.export import export_checkpoint
from tests.tiny_learner import PlainLearner, as_samples, make_config, make_trajectories, noise_image

TIMEOUT_S = 420
FLOAT32 = {f"zero{stage}": {"stage": stage, "dtype": "float32", "learner": {}} for stage in range(4)}
BFLOAT16 = {f"zero{stage}-bfloat16": {"stage": stage, "dtype": "bfloat16", "learner": {}} for stage in (0, 3)}
CHECKPOINTED = {"zero2-checkpointing": {"stage": 2, "dtype": "float32", "learner": {"gradient_checkpointing": True}}}
CASES = {1: FLOAT32 | CHECKPOINTED, 2: FLOAT32 | BFLOAT16}
SHORT = {(1, "zero3"), (1, "zero2-checkpointing"), (2, "zero0"), (2, "zero2"), (2, "zero3"), (2, "zero3-bfloat16")}


def case(ranks: int, name: str) -> Any:
    return pytest.param(ranks, name, marks=() if (ranks, name) in SHORT else pytest.mark.long)


PARITY = [case(ranks, name) for ranks, cases in CASES.items() for name, settings in cases.items() if settings["dtype"] == "float32"]
EVERY = [case(ranks, name) for ranks, cases in CASES.items() for name in cases]


def run_ranks(
    folder: Path, model: Path, batches: list, cases: dict, *, world_size: int, disarmed: bool = False, timeout_s: float = TIMEOUT_S
) -> list[tuple[int | None, str]]:
    """Run a group to its end; each rank's exit code (None: had to be killed) and output."""
    folder.mkdir(exist_ok=True)
    (folder / "batches.pickle").write_bytes(pickle.dumps(batches))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "world_size": world_size, "port": port, "folder": str(folder), "model": str(model), "disarmed": disarmed,
        "cases": [{"name": name, **case} for name, case in cases.items()],
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.learner_rank", json.dumps({"rank": rank, **settings})],
            cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    results: list[tuple[int | None, str]] = []
    try:
        for process in ranks:
            try:
                output, _ = process.communicate(timeout=timeout_s)
                results.append((process.returncode, output))
            except subprocess.TimeoutExpired:
                results.append((None, ""))
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return results


@pytest.fixture(scope="module")
def batches(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list:
    """Three training steps, of a shard with images and one without; the third's has a broken number on the rank without."""
    folder = tmp_path_factory.mktemp("images")

    def step(number: int) -> list:
        first, second = (noise_image(folder, 2 * number + i) for i in range(2))
        pictured = [
            t
            for i, images in enumerate([(first,), (second, first), ()])
            for t in make_trajectories(tiny_model, images, number=10 * number + i, samples=4, lengths=(3, 20))
        ]
        return [as_samples(pictured), as_samples(make_trajectories(tiny_model, (), number=10 * number + 5, samples=2))]

    broken = step(2)
    trajectory = broken[1][0].trajectory
    nans = np.full_like(trajectory.behavior_logprobs, np.nan)
    broken[1][0] = dataclasses.replace(
        broken[1][0], trajectory=dataclasses.replace(trajectory, behavior_logprobs=nans, loss_mask=np.ones_like(trajectory.loss_mask))
    )
    return [step(0), step(1), broken]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tiny_model: Path, batches: list, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """What the groups of one and of two ranks left, a folder a case; of the cases that the selected tests are about."""
    parameters = [item.callspec.params for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    wanted = {(1, "zero3"), (2, "zero3")} | {(found["ranks"], found["name"]) for found in parameters if "ranks" in found}
    folders = {}
    for world_size, every in CASES.items():
        cases = {name: settings for name, settings in every.items() if (world_size, name) in wanted}
        folders[world_size] = folder = tmp_path_factory.mktemp("ranks") / str(world_size)
        joined = batches if world_size == 2 else [[[*pictured, *text]] for pictured, text in batches]
        for code, output in run_ranks(folder, tiny_model, joined, cases, world_size=world_size):
            assert code == 0, output[-5000:]
    return folders


@pytest.fixture(scope="module")
def plain(tiny_model: Path, batches: list) -> dict[str, dict[str, torch.Tensor] | list[float]]:
    """The same two steps by torch alone."""
    learner = PlainLearner(tiny_model, make_config())
    state: dict = {"norms": []}
    for name, batch in zip(("first", "second"), batches, strict=False):
        trajectories = [sample.trajectory for part in batch for sample in part]
        # The learning rate of a cosine without warm-up over ten steps: tests/unit/test_learner_schedule.py.
        rate = 5e-5 * (0.5 + 0.25 * (1 + np.cos(np.pi * len(state["norms"]) / 9)))
        state["norms"].append(learner.step(trajectories, rate=rate))
        state[name] = learner.weights()
    state["learner"] = learner
    return state


def load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}.pt")


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name].detach().float() - value.float()).abs().max()) for name, value in expected.items())


def mean_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(found[name] - value).abs().flatten() for name, value in expected.items()]).mean())


@pytest.mark.parametrize(("ranks", "name"), PARITY)
def test_steps_equal_plain_pytorch(runs, plain, ranks: int, name: str) -> None:
    folder = runs[ranks] / name
    for step in ("first", "second"):
        assert largest_difference(load(folder, step), plain[step]) <= 1e-5
        # Adam divides tiny gradients by themselves, so a few weights may differ visibly; the rest must not.
        assert mean_difference(load(folder, step), plain[step]) <= 1e-8
    results = pickle.loads((folder / "results.pickle").read_bytes())
    assert [m["grad_norm"] for m in results["metrics"]] == pytest.approx(plain["norms"], rel=1e-4)


def test_two_ranks_one_without_an_image_have_the_gradient_of_one_rank_with_everything(runs) -> None:
    """ZeRO-3, whose collectives hang or spoil the gradient when the ranks' paths differ."""
    one, two = (load(runs[ranks] / "zero3", "gradient") for ranks in (1, 2))
    assert max(float(moment.abs().max()) for name, moment in one.items() if "visual" in name) > 0
    assert largest_difference(two, one) <= 1e-5 * max(float(moment.abs().max()) for moment in one.values())


@pytest.mark.parametrize(("ranks", "name"), PARITY)
def test_scores_equal_plain_pytorch(runs, plain, batches, ranks: int, name: str) -> None:
    scores = pickle.loads((runs[ranks] / name / "results.pickle").read_bytes())["scores"]
    for found, sample in zip(scores, batches[0][0], strict=False):
        with torch.no_grad():
            np.testing.assert_allclose(found, plain["learner"].logprobs(sample.trajectory).numpy(), atol=1e-4)


@pytest.mark.parametrize(("ranks", "name"), EVERY)
def test_a_checkpoint_goes_on_bit_for_bit(runs, ranks: int, name: str) -> None:
    second = load(runs[ranks] / name, "second")
    assert largest_difference(second, load(runs[ranks] / name, "first")) > 0
    assert largest_difference(load(runs[ranks] / name, "again"), second) == 0
    assert largest_difference(load(runs[ranks] / name, "fresh"), second) == 0


@pytest.mark.parametrize(("ranks", "name"), EVERY)
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(runs, ranks: int, name: str) -> None:
    folder = runs[ranks] / name
    results = pickle.loads((folder / "results.pickle").read_bytes())
    assert results["skipped"]["update/skipped"] == 1
    assert results["skipped"]["tokens/trained"] == 0
    assert largest_difference(load(folder, "skipped"), load(folder, "fresh")) == 0
    assert results["after"]["update/skipped"] == 0
    assert np.isfinite(results["after"]["grad_norm"])
    assert np.isfinite(results["supervised"])


@pytest.mark.parametrize(("ranks", "name"), EVERY)
def test_the_export_is_a_hugging_face_folder(runs, batches, ranks: int, name: str) -> None:
    folder = runs[ranks] / name
    model = AutoModelForImageTextToText.from_pretrained(folder / "export")
    weights = {key: value for key, value in model.named_parameters() if key != "lm_head.weight"}
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert largest_difference(weights, load(folder, "second")) == 0
    assert {value.dtype for value in weights.values()} == {getattr(torch, CASES[ranks][name]["dtype"])}
    assert AutoProcessor.from_pretrained(folder / "export").tokenizer.chat_template


@pytest.mark.parametrize(("ranks", "name"), EVERY)
def test_a_checkpoint_is_a_model_too(runs, ranks: int, name: str, tmp_path: Path) -> None:
    """Without the ranks and the optimizer that wrote it, and in the dtype that was trained in."""
    folder = runs[ranks] / name
    export_checkpoint(folder / "checkpoint", tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    weights = {key: value for key, value in model.named_parameters() if key != "lm_head.weight"}
    assert largest_difference(weights, load(folder, "first")) == 0
    assert {value.dtype for value in weights.values()} == {getattr(torch, CASES[ranks][name]["dtype"])}
    files = {"config.json", "tokenizer.json", "preprocessor_config.json"}
    for written in (path for path in (folder / "export").iterdir() if path.name in files):  # as a running group writes it
        assert (tmp_path / "model" / written.name).read_bytes() == written.read_bytes()
        files.remove(written.name)
    assert "config.json" not in files and "tokenizer.json" not in files


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.long), 3])
def test_without_the_dummy_image_a_rank_of_text_ends_or_spoils_the_group(
    tiny_model: Path, batches: list, plain, tmp_path: Path, stage: int
) -> None:
    """The trap that Collator.always_run_vision is the remedy of; should this fail, DeepSpeed has learned to do without."""
    cases = {"disarmed": {"stage": stage, "dtype": "float32", "learner": {"timeout_s": 20.0}}}
    results = run_ranks(tmp_path / "ranks", tiny_model, batches, cases, world_size=2, disarmed=True, timeout_s=90)
    if any(code for code, _ in results):
        assert any("collective mismatch" in output for _, output in results), [output[-2000:] for _, output in results]
    elif all(code == 0 for code, _ in results):
        assert largest_difference(load(tmp_path / "ranks" / "disarmed", "first"), plain["first"]) > 1e-5


def test_deepspeed_still_has_the_table_of_operators_that_we_touch() -> None:
    """Private to DeepSpeed: setting it spares every user a compiler and 20 seconds."""
    script = "import deepspeed.ops as ops; print('deepspeed_shm_comm' in ops.__compatible_ops__)"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert done.stdout.strip().endswith("True")

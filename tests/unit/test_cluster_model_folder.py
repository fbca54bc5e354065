"""Which model a folder means; a checkpoint of one rank without ZeRO becomes one (the others: tests/integration/test_learner.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from cluster.model_folder import model_folder
from conf.loading import ConfigError
from learner.export import export_checkpoint, keep_model_files


def find(named: Path | None, run_dir: Path = Path("nowhere"), said: list[str] | None = None) -> Path:
    return model_folder(named, run_dir, trust_remote_code=False, say=[].append if said is None else said.append)


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Path:
    """A run folder with two checkpoints, of weights that a step apart differ."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    for step in (2, 4):
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1.0)
        learner = tmp_path / "run" / "checkpoint" / f"step-{step:06d}" / "learner"
        (learner / "learner").mkdir(parents=True)
        module = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({"module": module}, learner / "learner" / "mp_rank_00_model_states.pt")
        keep_model_files(model, tiny_model, learner)
        (learner.parent / "controller.json").write_text("{}")
    return tmp_path / "run"


def embeddings(folder: Path) -> torch.Tensor:
    return AutoModelForImageTextToText.from_pretrained(folder).get_input_embeddings().weight


def test_a_checkpoint_is_the_model_of_its_step(run: Path, tiny_model: Path) -> None:
    said: list[str] = []
    folder = find(run / "checkpoint" / "step-000002", said=said)
    assert folder == run / "checkpoint" / "step-000002" / "model" and "step-000002" in said[0]
    assert torch.equal(embeddings(folder), embeddings(tiny_model) + 1.0)
    assert {path.name for path in tiny_model.iterdir()} <= {path.name for path in folder.iterdir()}
    assert find(run / "checkpoint" / "step-000002", said=said) == folder and len(said) == 1  # written once
    assert [path.name for path in folder.parent.glob(".model*")] == []


@pytest.mark.parametrize("part", ["", "checkpoint"])
def test_a_run_under_way_is_its_newest_checkpoint(run: Path, tiny_model: Path, part: str) -> None:
    assert torch.equal(embeddings(find(run / part)), embeddings(tiny_model) + 1.0 + 1.0)
    assert find(None, run).parent.name == "step-000004"


def test_a_finished_run_is_its_trained_model(run: Path, tiny_model: Path) -> None:
    (run / "model").symlink_to(tiny_model)
    assert find(run) == find(None, run) == run / "model"
    assert find(tiny_model) == tiny_model


def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_leaves_nothing(run: Path) -> None:
    learner = run / "checkpoint" / "step-000004" / "learner"
    stored = torch.load(learner / "learner" / "mp_rank_00_model_states.pt")
    del stored["module"]["model.model.language_model.norm.weight"]
    torch.save(stored, learner / "learner" / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match=r"lacks 1 tensors of its model, model.language_model.norm.weight among them"):
        export_checkpoint(learner, run / "target")
    assert [path.name for path in run.iterdir()] == ["checkpoint"]


def test_nothing_to_be_found_is_one_sentence(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model '.*' is no Hugging Face model folder: .* and no checkpoint"):
        find(tmp_path)
    with pytest.raises(ConfigError, match=r"run.dir = '.*' holds no trained model"):
        find(None, tmp_path)
    (run / "checkpoint/step-000004/learner/model_files/config.json").unlink()
    with pytest.raises(ConfigError, match="a version that kept no model files"):
        find(run)

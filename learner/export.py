"""The policy as a Hugging Face folder, from a running group's weights or from a checkpoint.

Owns what such a folder consists of. Must not know how weights are gathered; reading a checkpoint needs neither ranks nor an optimizer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from learner.deepspeed_engine import checkpoint_weights

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth")
MODEL_FILES = "model_files"  # of a checkpoint: a Hugging Face folder without its weights
_WRAPPER = "model."  # PolicyModel's name for the Hugging Face model that it holds


def write_model(model: Any, weights: Mapping[str, torch.Tensor], origin: Path, target: Path) -> None:
    """Write a Hugging Face folder that AutoModelForImageTextToText and vLLM load.

    Args:
        model: whose configuration is written; its own weights are not.
        weights: whole tensors by Hugging Face's names, a tied output layer left out.
        origin: folder with tokenizer, processor and chat template, which are copied as they are.
        target: the weights are replaced when it is there.
    """
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(origin, target, ignore=shutil.ignore_patterns(*WEIGHT_FILES, "config.json"), dirs_exist_ok=True)
    model.save_pretrained(target, state_dict=dict(weights))


def keep_model_files(model: Any, origin: Path, checkpoint: Path) -> None:
    """Put beside a checkpoint what its weights need to be a model again.

    Args:
        model: whose configuration is written.
        origin: Hugging Face folder that training started from.
        checkpoint: the learner's folder of a checkpoint.
    """
    files = checkpoint / MODEL_FILES
    shutil.copytree(origin, files, ignore=shutil.ignore_patterns(*WEIGHT_FILES, "config.json"), dirs_exist_ok=True)
    model.config.save_pretrained(files)


def holds_model(checkpoint: Path) -> bool:
    """Whether a folder is a learner's checkpoint that a model can be made of.

    Args:
        checkpoint: any path.

    Returns:
        False also for what isn't there.
    """
    return (checkpoint / MODEL_FILES / "config.json").is_file()


def export_checkpoint(checkpoint: Path, target: Path, *, trust_remote_code: bool = False) -> None:
    """Write a checkpoint's policy as a Hugging Face folder, as the group that wrote the checkpoint would have.

    Takes memory for the weights, under ZeRO-3 in float32 and twice. Reads pickles, which run code: of one's own runs only.

    Args:
        checkpoint: the learner's folder, of any ZeRO stage and number of ranks.
        target: made whole or not at all; left alone when it is there.
        trust_remote_code: build the model from code in the folder.

    Raises:
        FileNotFoundError: when a part of the checkpoint is missing.
        ValueError: when its weights are not those of the model.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    if target.exists():
        return
    files = checkpoint / MODEL_FILES
    config = AutoConfig.from_pretrained(files, local_files_only=True, trust_remote_code=trust_remote_code)
    with torch.device("meta"):  # for its names and its way to save them only
        model = AutoModelForImageTextToText.from_config(config, dtype=config.dtype, trust_remote_code=trust_remote_code)
    expected = dict(model.named_parameters())  # which names shared ones once, by the embedding
    stored = {name.removeprefix(_WRAPPER): tensor for name, tensor in checkpoint_weights(checkpoint).items()}
    if missing := expected.keys() - stored.keys():
        raise ValueError(f"the checkpoint in {checkpoint} lacks {len(missing)} tensors of its model, {min(missing)} among them")
    weights = {name: stored[name].to(config.dtype) for name in expected}
    if wrong := [name for name, tensor in weights.items() if tensor.shape != expected[name].shape]:
        raise ValueError(f"the checkpoint in {checkpoint} has another shape of {wrong[0]} than its model")
    writing = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        write_model(model, weights, files, writing)
        os.replace(writing, target)
    finally:
        shutil.rmtree(writing, ignore_errors=True)

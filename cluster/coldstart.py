"""What a run starts from: generated data where it is asked for, and a model that knows the form of an answer.

Owns the cold start's cache. The supervised steps themselves are the learner's.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import ray

from algorithms.schema import to_record_batch
from cluster import ending
from cluster.progress import Progress
from cluster.session import ray_session
from conf.loading import config_hash
from conf.schema import Config
from learner.group import LearnerGroup
from tasks.errors import DataError
from tasks.prompts import PromptEncoder, load_tokenizer
from tasks.quickstart import build_data, build_tiny_model
from tasks.worked import direct_trajectory, supervised_trajectories, worked_answers

REPORT_EVERY_STEPS = 50


def prepare_data(config: Config, progress: Progress) -> None:
    """Build generated data, when the configuration asks for it and it isn't there.

    Args:
        config: of the run.
        progress: told of the phase.

    Raises:
        DataError: when the folder holds something else.
    """
    if config.data.generate == "quickstart":
        with progress.phase("building the quickstart data"):
            try:
                build_data(Path(config.data.path).parent)
            except FileExistsError as error:
                raise DataError(f"data.generate = quickstart, data.path = {config.data.path!r}: {error}") from error


def run(config: Config) -> Path:
    """Make the model that a run starts from, as a command of its own.

    Args:
        config: checked, with coldstart.steps > 0.

    Returns:
        The model's folder.
    """
    progress = Progress()
    prepare_data(config, progress)
    with ray_session(config):
        return ending.run(prepare_model(config, progress))


async def prepare_model(config: Config, progress: Progress) -> Path:
    """The model that training starts from.

    Args:
        config: of the run.
        progress: told of the phase.

    Returns:
        model.path as it is; with coldstart.steps > 0, what the cold start made of it (or of a tiny new model, when
        model.path is empty), taken from the cache when the same settings made it before.
    """
    if config.coldstart.steps == 0:
        return Path(config.model.path)
    folder = Path(config.coldstart.cache_dir).resolve() / cache_key(config)
    if folder.exists():
        progress.say(f"cold start found in the cache: {folder}")
        return folder
    with progress.phase("cold start"):
        await _supervised_phase(config, folder, progress)
    return folder


def cache_key(config: Config) -> str:
    """Everything that the cold start's model depends on, as a short hash.

    Args:
        config: of the run.

    Returns:
        16 hexadecimal digits.
    """
    return config_hash(
        dataclasses.replace(config.coldstart, cache_dir=""),
        config.model,
        dataclasses.replace(config.data, test_path="", max_bad_fraction=0.0),
    )


async def _supervised_phase(config: Config, folder: Path, progress: Progress) -> None:
    """Train on worked answers with one learner rank, and move the result into the cache whole."""
    settings = config.coldstart
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    base = Path(config.model.path)
    if not config.model.path:
        base = build_tiny_model(scratch / "base", settings.seed, prompt_suffix=config.data.prompt_suffix)
    tokenizer = load_tokenizer(base)
    encoder = PromptEncoder.of_run(tokenizer, config.model, config.data)
    answers = worked_answers(
        config.data.path, config.data, examples=settings.examples, rethinking_fraction=settings.rethinking_fraction, seed=settings.seed
    )
    examples = supervised_trajectories(answers, encoder=encoder, tokenizer=tokenizer)
    learner = LearnerGroup(_coldstart_config(config), str(base))
    try:
        await learner.start()
        random = np.random.default_rng(settings.seed)
        for step in range(settings.steps):
            rows = random.choice(len(examples), size=min(settings.batch_size, len(examples)), replace=False)
            direct_fraction = settings.direct_fraction if step >= settings.steps - settings.direct_steps else 0.0
            shortened = random.random(len(rows)) < direct_fraction
            batch = to_record_batch(
                direct_trajectory(answers[row].prompt, encoder=encoder, tokenizer=tokenizer) if short else examples[row]
                for row, short in zip(rows, shortened, strict=True)
            )
            loss = await learner.supervised_update([ray.put(batch)], step=step)
            if (step + 1) % REPORT_EVERY_STEPS == 0:
                progress.say(f"cold start {step + 1}/{settings.steps}  loss {loss:.3f}")
        await learner.export_model(str(scratch / "model"))
    finally:
        await learner.close()
    os.replace(scratch / "model", folder)
    shutil.rmtree(scratch)


def _coldstart_config(config: Config) -> Config:
    """The run's configuration with the cold start's optimizer and one rank."""
    settings = config.coldstart
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, num_steps=settings.steps),
        learner=dataclasses.replace(
            config.learner, num_ranks=1, zero_stage=0, learning_rate=settings.learning_rate, betas=(0.9, 0.95), min_learning_rate_ratio=0.1
        ),
    )

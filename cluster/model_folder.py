"""Which model is meant by a folder: a Hugging Face folder, a run, or one of a run's checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.run_folder import RunFolder
from conf.loading import ConfigError


def model_folder(named: Path | None, run_dir: Path, *, trust_remote_code: bool, say: Callable[[str], None]) -> Path:
    """Find the Hugging Face folder that is meant; of a checkpoint, it is written into the checkpoint first.

    Args:
        named: a Hugging Face folder, a run folder, its folder checkpoint/ or one of the checkpoints in it; None: the run's own.
        run_dir: the configuration's run folder.
        trust_remote_code: for writing a checkpoint's model.
        say: is told when a checkpoint stands in for a trained model.

    Returns:
        The folder.

    Raises:
        ConfigError: when there is no model and nothing that one could be made of.
    """
    folder = named or run_dir
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    checkpoint = _checkpoint(folder)
    if checkpoint is not None:
        return _exported(checkpoint, trust_remote_code, say)
    origin = f"--model '{named}'" if named else f"run.dir = '{run_dir}'"
    what = "is no Hugging Face model folder" if named else "holds no trained model"
    raise ConfigError(f"{origin} {what}: there is no config.json in it or in its folder model/, and no checkpoint.")


def _checkpoint(folder: Path) -> Path | None:
    """The folder itself, or the newest one of a run."""
    if (folder / "controller.json").is_file():
        return folder
    if folder.name == "checkpoint":
        folder = folder.parent
    return RunFolder(folder).newest_checkpoint() if (folder / "checkpoint").is_dir() else None


def _exported(checkpoint: Path, trust_remote_code: bool, say: Callable[[str], None]) -> Path:
    model = checkpoint / "model"
    if model.is_dir():
        return model
    from learner.export import export_checkpoint, holds_model  # imports torch

    if not holds_model(checkpoint / "learner"):
        raise ConfigError(
            f"{checkpoint} was written by a version that kept no model files in checkpoints; finish the run (rethinker train with"
            " run.resume=true and, to end it where it stands, run.num_steps at the checkpoint's step), which writes model/."
        )
    say(f"writing the model of {checkpoint} into it")
    export_checkpoint(checkpoint / "learner", model, trust_remote_code=trust_remote_code)
    return model

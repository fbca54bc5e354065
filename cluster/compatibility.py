"""Which settings a resumed run may change. Compares plain values; no Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf.loading import ConfigError, resolved_yaml
from conf.schema import Config

# Where things run, how long they may take and what is reported; everything else would make the resumed run another one.
CHANGEABLE_SECTIONS = ("cluster", "report", "rollout", "evaluation", "checkpoint", "guard", "supervision", "weights")
SAMPLING_KEYS = ("rollout.temperature", "rollout.top_p", "rollout.top_k")  # they are part of the policy
CHANGEABLE_KEYS = (
    "run.name",
    "run.dir",
    "run.num_steps",
    "run.resume",
    "run.auto_resume",
    "run.stop_grace_s",
    "run.overwrite",
    "data.test_path",
    "data.max_bad_fraction",
)


def check_resumable(stored: Path, config: Config) -> None:
    """Refuse to resume a run under settings that would make it another one.

    Args:
        stored: the run folder's config.yaml.
        config: that was asked for.

    Raises:
        ConfigError: naming the first key that differs, and both values.
    """
    before = _flat(OmegaConf.to_container(OmegaConf.load(stored)))
    now = _flat(OmegaConf.to_container(OmegaConf.create(resolved_yaml(config))))
    for key in sorted(before.keys() | now.keys()):
        changeable = key.split(".")[0] in CHANGEABLE_SECTIONS or key in CHANGEABLE_KEYS or key.endswith("timeout_s")
        if (not changeable or key in SAMPLING_KEYS) and before.get(key) != now.get(key):
            raise ConfigError(
                f"run.resume=true, but {key} is {now.get(key)!r} and the run in {stored.parent} has {before.get(key)!r}; "
                f"set it back, or start another run"
            )


def resumed_where_there_is_a_run(stored: Path, config: Config) -> Config:
    """Let run.auto_resume become run.resume.

    Args:
        stored: the run folder's config.yaml, if it holds a run.
        config: that was asked for.

    Returns:
        The same settings; with run.resume where run.auto_resume is set and there is a run.
    """
    if not (config.run.auto_resume and stored.exists()):
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, resume=True))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, child in value.items() for k, v in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()}

"""A run as stages: the same roles under other settings, one stage after the other.

Owns the form of run.stages and which settings a stage may change. Must not know Ray, torch or the engines.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from conf.loading import ConfigError, with_overrides
from conf.schema import Config

CHANGEABLE = ("algorithm", "learner", "replay", "rethinking", "reward", "rollout")  # sections
# A stage goes on from the checkpoint of the one before it, which must fit.
FIXED = ("algorithm.prompts_per_step", "learner.num_ranks", "learner.zero_stage", "replay.mode", "rollout.num_actors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A span of a run's steps under one configuration."""

    name: str  # empty: the run has no stages
    config: Config  # run.num_steps is the whole run's, so that the learning rate has one schedule
    first_step: int  # steps done when it begins
    last_step: int  # steps done when it ends


def plan_stages(config: Config) -> list[Stage]:
    """Read run.stages.

    Args:
        config: of a run.

    Returns:
        At least one stage, one after the other without gaps: all of them, or the one that run.stage names, from step 0.

    Raises:
        ConfigError: for a stage without name or steps, a name that is there twice or not at all, or a setting that a stage can't change.
    """
    if not config.run.stages:
        if config.run.stage:
            raise ConfigError(f"run.stage = {config.run.stage!r} names a stage, but run.stages is empty.")
        return [Stage(name="", config=config, first_step=0, last_step=config.run.num_steps)]
    parsed = [_parse(text) for text in config.run.stages]
    names = [name for name, _, _ in parsed]
    if len(set(names)) < len(names):
        raise ConfigError(f"run.stages has two stages of one name: {', '.join(names)}.")
    if config.run.stage and config.run.stage not in names:
        raise ConfigError(f"run.stage = {config.run.stage!r} is none of run.stages: {', '.join(names)}.")
    chosen = [stage for stage in parsed if config.run.stage in ("", stage[0])]
    total = sum(steps for _, steps, _ in chosen)
    return list(_consecutive(config, chosen, total))


def total_steps(config: Config) -> int:
    """Count the steps of a run.

    Args:
        config: of a run.

    Returns:
        Of all its stages together; run.num_steps where it has none.
    """
    return plan_stages(config)[-1].last_step


def _consecutive(config: Config, stages: list[tuple[str, int, list[str]]], total: int) -> Iterator[Stage]:
    done = 0
    for name, steps, words in stages:
        changed = with_overrides(config, words)
        for section in dataclasses.fields(config):
            for field in dataclasses.fields(getattr(config, section.name)):
                key = f"{section.name}.{field.name}"
                before, after = (getattr(getattr(each, section.name), field.name) for each in (config, changed))
                if before != after and (section.name not in CHANGEABLE or key in FIXED):
                    raise ConfigError(
                        f"run.stages: the stage {name!r} sets {key} = {after!r}, which is the same for the whole run ({before!r})."
                    )
        run = dataclasses.replace(changed.run, num_steps=total)
        yield Stage(name=name, config=dataclasses.replace(changed, run=run), first_step=done, last_step=done + steps)
        done += steps


def _parse(text: str) -> tuple[str, int, list[str]]:
    """A stage's name, steps and settings."""
    values: dict[str, str] = {}
    words = []
    try:
        pieces = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"run.stages: {text!r} cannot be read: {error}.") from error
    for word in pieces:
        key, equals, value = word.partition("=")
        if equals and key in ("name", "steps"):
            values[key] = value
        else:
            words.append(word)
    if not values.get("name") or not values.get("steps", "").isdecimal() or int(values["steps"]) < 1:
        raise ConfigError(
            f"run.stages: {text!r} needs a name and a number of steps, such as 'name=first steps=40 rethinking.enabled=true'."
        )
    return values["name"], int(values["steps"]), words

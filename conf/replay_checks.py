"""The rules between the keys of replay and the rest; conf.checks asks for them.

Must not know Ray, torch or the engines.
"""

from __future__ import annotations

from collections.abc import Iterator

from conf.rethinking_checks import appends
from conf.schema import AdvantageKind, Config, LossWeight, ReplayMode
from conf.sizes import batch_size, trajectories_per_step
from conf.staleness import staleness_bound
from conf.wording import Speaker


def replay_rules(config: Config, at: Speaker) -> Iterator[str]:
    """Refuse settings of replay that cannot work together.

    Args:
        config: of a run.
        at: from a dotted key to "key = value".

    Yields:
        A sentence for each broken rule.
    """
    yield from _priorities(config, at)
    yield from _room(config, at)
    yield from _parts(config, at)


def _priorities(config: Config, at: Speaker) -> Iterator[str]:
    corrected = config.algorithm.loss_weight is LossWeight.corrected
    if corrected and not config.replay.importance_exponent > 0:
        yield f"{at('algorithm.loss_weight')} corrects nothing while {at('replay.importance_exponent')}; 1 corrects in full."
    if not corrected and config.replay.importance_exponent > 0:
        yield (
            f"{at('replay.importance_exponent')} would be ignored, because {at('algorithm.loss_weight')}; set"
            " algorithm.loss_weight=corrected, or the exponent to 0."
        )
    if corrected and config.replay.mode in (ReplayMode.none, ReplayMode.filter):
        yield (
            f"{at('algorithm.loss_weight')} is for trajectories drawn by priority, but {at('replay.mode')} draws none; set"
            " algorithm.loss_weight=advantage and replay.importance_exponent=0."
        )


def _room(config: Config, at: Speaker) -> Iterator[str]:
    replay, staleness = config.replay, config.algorithm.max_staleness
    room = staleness_bound(config).groups_ahead * config.algorithm.samples_per_prompt * (2 if appends(config) else 1)
    if replay.max_trajectories < room:
        yield (
            f"{at('replay.max_trajectories')} cannot hold what arrives between two draws: {trajectories_per_step(config)} trajectories a"
            f" step with {at('algorithm.max_staleness')} make {room}."
        )
    if replay.mode is ReplayMode.fresh and replay.max_age < max(1, staleness):
        yield (
            f"{at('replay.max_age')} leaves {at('replay.mode')} nothing older to draw from; with {at('algorithm.max_staleness')} it needs"
            f" at least {max(1, staleness)}."
        )
    if replay.mode in (ReplayMode.fresh, ReplayMode.prioritized) and not replay.age_decay_steps > 0:
        yield f"{at('replay.age_decay_steps')} is the time constant of {at('replay.mode')}, expected more than 0."


def _parts(config: Config, at: Speaker) -> Iterator[str]:
    """Limits of reuse and of the ratio, which only some modes have a place for."""
    replay = config.replay
    if replay.mode in (ReplayMode.none, ReplayMode.filter, ReplayMode.episode):
        for key, is_set in (("max_times_sampled", replay.max_times_sampled is not None), ("priority_refresh", replay.priority_refresh)):
            if is_set:
                yield f"{at(f'replay.{key}')} is for trajectories that stay, but {at('replay.mode')} keeps none beyond its step."
    if replay.priority_refresh and config.algorithm.advantage is not AdvantageKind.mean:
        yield f"{at('replay.priority_refresh')} subtracts a newer mean reward, which is not what {at('algorithm.advantage')} does."
    if replay.mode is not ReplayMode.prioritized:
        for key, is_set in (("min_size", replay.min_size > 1), ("samples_per_insert", replay.samples_per_insert is not None)):
            if is_set:
                yield f"{at(f'replay.{key}')} paces draws by what was inserted, but {at('replay.mode')} paces them by whole steps."
    if replay.min_size > replay.max_trajectories:
        yield f"{at('replay.min_size')} is above {at('replay.max_trajectories')}: no draw could ever be made."
    if (replay.samples_per_insert is None) != (replay.samples_per_insert_error is None):
        yield f"{at('replay.samples_per_insert')} and {at('replay.samples_per_insert_error')} are set together or not at all."
    if replay.samples_per_insert is not None and replay.samples_per_insert_error is not None:
        if not replay.samples_per_insert > 0:
            yield f"{at('replay.samples_per_insert')} would shut the door for draws, expected more than 0."
        draws, inserts = batch_size(config) * config.algorithm.updates_per_step, trajectories_per_step(config)
        budget = (draws + inserts * replay.samples_per_insert) / 2
        if replay.samples_per_insert_error < budget:
            yield (
                f"{at('replay.samples_per_insert_error')} could shut both doors at once: a step draws {draws} and inserts up to {inserts},"
                f" so with {at('replay.samples_per_insert')} it needs at least {budget:g}."
            )

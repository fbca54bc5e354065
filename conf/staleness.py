"""How stale the tokens of a batch can be under given settings; docs/staleness.md derives it.

Owns the bound as a property of the configuration. Must not know Ray, torch or the engines.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema import Config, ReplayMode


@dataclass(frozen=True, kw_only=True)
class StalenessBound:
    """Bounds that hold for every step of a run, whatever finishes first and whatever fails.

    Example: with max_staleness 2, 64 prompts a step and 4 updates a step: ``fresh_versions=2``, ``fresh_updates=11``,
    ``groups_ahead=192``.
    """

    fresh_versions: int  # of a group when its step consumes it: the learner's version minus the oldest token's
    replayed_versions: int | None  # of any row that a batch may hold; None: the replay mode keeps rows without a bound on their age
    fresh_updates: int  # optimizer updates between a fresh token's sampling and the last update of the step that trains on it
    groups_ahead: int  # groups that are being rolled out or wait in replay


def staleness_bound(config: Config) -> StalenessBound:
    """Work out how stale a run's batches can become.

    Args:
        config: of a run.

    Returns:
        The bounds; in policy versions, optimizer updates and groups.
    """
    algorithm, replay = config.algorithm, config.replay
    versions, updates = algorithm.max_staleness, algorithm.updates_per_step
    replayed: int | None = versions
    if replay.mode in (ReplayMode.fifo, ReplayMode.prioritized):
        replayed = None
    elif replay.mode is ReplayMode.fresh:
        replayed = max(versions, replay.max_age)
    return StalenessBound(
        fresh_versions=versions,
        replayed_versions=replayed,
        fresh_updates=versions * updates + updates - 1,
        groups_ahead=algorithm.prompts_per_step * (versions + 1),
    )

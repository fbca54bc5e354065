"""The rules between keys that say how many rollout actors a run has and when one is given up.

Must not know Ray, torch or the engines.
"""

from __future__ import annotations

from collections.abc import Iterator

from conf.schema import Config
from conf.wording import Speaker


def supervision_rules(config: Config, at: Speaker) -> Iterator[str]:
    """Say which keys of a training run contradict each other.

    Args:
        config: of a run.
        at: from a dotted key to "key = value".

    Yields:
        A sentence for each.
    """
    rollout, supervision = config.rollout, config.supervision
    if supervision.dead_after < supervision.suspect_after:
        yield (
            f"{at('supervision.dead_after')} is below {at('supervision.suspect_after')}: a rollout actor would be given up before it is"
            " suspected."
        )
    if (rollout.min_actors is None) != (rollout.max_actors is None):
        yield f"{at('rollout.min_actors')} and {at('rollout.max_actors')} are set together or not at all."
    elif rollout.min_actors is not None and not rollout.min_actors <= rollout.num_actors <= (rollout.max_actors or 0):
        yield (
            f"{at('rollout.num_actors')} is where a run starts that scales itself between {at('rollout.min_actors')} and"
            f" {at('rollout.max_actors')}; choose one in between."
        )


def needs_actors(config: Config, at: Speaker) -> Iterator[str]:
    """Refuse to answer questions without rollout actors.

    Args:
        config: of an evaluation or of a sampling of pass rates.
        at: from a dotted key to "key = value".

    Yields:
        At most one sentence.
    """
    if config.rollout.num_actors == 0:
        yield f"{at('rollout.num_actors')} leaves nobody to answer; only a training run can begin without and be scaled up later."

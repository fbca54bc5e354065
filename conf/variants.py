"""Settings that follow from one key: what rethinking.variant fixes.

Must not know Ray, torch or the engines.
"""

from __future__ import annotations

import dataclasses

from conf.schema import NllTokens, NllWeight, Placement, RethinkingConfig, RethinkingVariant


def resolved(rethinking: RethinkingConfig) -> RethinkingConfig:
    """Put a variant's fixed values in place.

    Args:
        rethinking: as it was configured.

    Returns:
        The same for ``blind``. For ``paper_code`` its loss and placement; who goes on and with which trigger is
        algorithms.rethinking.PAPER_CODE.
    """
    if rethinking.variant is not RethinkingVariant.paper_code:
        return rethinking
    return dataclasses.replace(
        rethinking, placement=Placement.replace, nll_weight=0.05, nll_tokens=NllTokens.all, nll_factor=NllWeight.none
    )


def nll_weight(rethinking: RethinkingConfig) -> float:
    """The weight of the NLL term in the loss.

    Args:
        rethinking: as it was configured.

    Returns:
        0 where forced rethinking is off.
    """
    return resolved(rethinking).nll_weight if rethinking.enabled else 0.0


def trains_triggers(rethinking: RethinkingConfig) -> bool:
    """Whether both losses cover the trigger's tokens, which the model did not sample.

    Args:
        rethinking: as it was configured.

    Returns:
        True for ``paper_code`` alone.
    """
    return rethinking.enabled and rethinking.variant is RethinkingVariant.paper_code

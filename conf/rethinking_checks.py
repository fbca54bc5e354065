"""The rules between the keys of forced rethinking and the rest; conf.checks asks for them.

Must not know Ray, torch or the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from conf.schema import Config, EvaluationMode, Placement, ReplayMode, RethinkingVariant


def appends(config: Config) -> bool:
    """Whether groups are larger than algorithm.samples_per_prompt.

    Args:
        config: of a run.

    Returns:
        True where forced rethinking puts y1 + trigger + y2 beside its y1.
    """
    return config.rethinking.enabled and config.rethinking.placement is Placement.append


def rethinking_rules(config: Config, at: Callable[[str], str]) -> Iterator[str]:
    """Refuse settings of forced rethinking that cannot work together.

    Args:
        config: of a run.
        at: from a dotted key to "key = value".

    Yields:
        A sentence for each broken rule.
    """
    rethinking = config.rethinking
    if appends(config) and config.replay.mode is ReplayMode.none:
        yield (
            f"{at('replay.mode')} trains every trajectory of a step once, but {at('rethinking.placement')} makes more of them than a step's"
            " batches hold; set rethinking.placement=replace."
        )
    if appends(config) and rethinking.variant is RethinkingVariant.paper_code:
        yield f"{at('rethinking.variant')} puts y1 + trigger + y2 in the place of y1, but {at('rethinking.placement')}."
    if rethinking.temperature is not None and not rethinking.temperature > 0:
        yield f"{at('rethinking.temperature')} would sample the same y2 every time, expected more than 0, or null for rollout.temperature."
    weights = rethinking.category_weights
    if min(weights) < 0 or not sum(weights) > 0:
        yield f"{at('rethinking.category_weights')} leaves no trigger to draw, expected numbers of at least 0, one above it."
    for category, weight in zip(("self_verification", "self_correction", "self_questioning"), weights, strict=True):
        if weight > 0 and not getattr(rethinking, category):
            yield f"{at(f'rethinking.{category}')} has no trigger, but {at('rethinking.category_weights')}; set its weight to 0."
    lists = (rethinking.self_verification, rethinking.self_correction, rethinking.self_questioning, rethinking.words)
    if any(not text.strip() for texts in lists for text in texts):
        yield "One of the texts in rethinking.self_verification, self_correction, self_questioning or words is empty."
    if config.evaluation.mode is not EvaluationMode.none and not config.data.test_path:
        yield f"{at('evaluation.mode')} needs held-out questions, but {at('data.test_path')} names none."

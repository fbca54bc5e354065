"""Forced rethinking in tokens: where y1 ends, which trigger follows, and how y1 + trigger + y2 becomes one response.

Owns the token side of the continuation, token in and token out: y1's ids stay as they were sampled, whatever text follows. The choices are
algorithms.rethinking's, sampling is the worker's. Must not know Ray, replay or the learner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.responses import Response, Scored
from algorithms.rethinking import PAPER_CODE, Decision, FirstResponse, Recipe, Trigger, cut_before_answer, decide
from algorithms.types import Segment, VersionSpan
from conf.schema import RethinkingConfig, RethinkingVariant

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CATEGORIES = ("self_verification", "self_correction", "self_questioning")


def recipe_of(config: RethinkingConfig) -> Recipe:
    """The recipe that a run's settings name.

    Args:
        config: of the run.

    Returns:
        The settings' own for ``blind``, a fixed one for ``paper_code``.
    """
    if config.variant is RethinkingVariant.paper_code:
        return PAPER_CODE
    texts = {category: getattr(config, category) for category in CATEGORIES}
    return Recipe(
        fraction=config.fraction,
        triggers=tuple(
            Trigger(text=text, category=category, weight=weight / len(texts[category]))
            for category, weight in zip(CATEGORIES, config.category_weights, strict=True)
            for text in texts[category]
            if weight > 0
        ),
        temperature=config.temperature,
        cut_fraction=config.cut_fraction,
    )


def evaluation_recipe_of(config: RethinkingConfig) -> Recipe:
    """How held-out answers are made to go on: all that can, whatever a run trains on, greedily, without a look at the gold answer.

    Args:
        config: of the run.

    Returns:
        The settings' own triggers; of ``paper_code`` the one that its evaluation uses.
    """
    paper_code = config.variant is RethinkingVariant.paper_code
    triggers = PAPER_CODE.triggers[:1] if paper_code else recipe_of(config).triggers
    return Recipe(fraction=1.0, triggers=triggers, temperature=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """A y1 that is about to go on."""

    index: int  # of y1 in its group
    first: Scored
    kept_tokens: int  # of y1, without its end-of-sequence token
    trigger_token_ids: NDArray[np.int32]  # [T]
    trigger_text: str
    max_new_tokens: int  # >= 1, what the response's limit leaves to y2
    temperature: float | None  # None: that of y1
    seed: int

    @property
    def prefix(self) -> NDArray[np.int32]:
        """[K + T] what is appended to the prompt."""
        return np.concatenate([self.first.response.token_ids[: self.kept_tokens], self.trigger_token_ids])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What becomes of the first responses of a group."""

    continuations: list[Continuation]
    skipped: Counter[str] = field(default_factory=Counter)  # by reason


class Rethinker:
    """Plans continuations and joins them.

    Args:
        tokenizer: the policy's.
        allowed_token_ids: ids that the policy may sample; a trigger may hold no others.
        recipe: who goes on and how.

    Raises:
        ValueError: for a trigger of special tokens, which would be an image or the end of the response to the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, allowed_token_ids: Sequence[int], recipe: Recipe) -> None:
        self._tokenizer = tokenizer
        self.recipe = recipe
        allowed = set(allowed_token_ids) - {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        for trigger in recipe.triggers:
            ids = self._ids(trigger.text)
            if not ids or not allowed.issuperset(ids):
                raise ValueError(f"the trigger {trigger.text!r} is of tokens {ids}, which are no plain text to the model")

    def plan(self, firsts: Sequence[Scored], *, seed: int, max_response_tokens: int) -> Plan:
        """Decide for a group.

        Args:
            firsts: its first responses, graded.
            seed: of the group; the same seed and responses give the same plan.
            max_response_tokens: of y1 + trigger + y2.

        Returns:
            The responses that go on, and how many were passed over for which reason; "no_room" when nothing is left for y2.
        """
        plan = Plan(continuations=[])
        accuracy = sum(first.correct for first in firsts) / max(len(firsts), 1)
        for index, first in enumerate(firsts):
            seen = FirstResponse(
                num_tokens=_own_tokens(first.response), finished=first.response.finish_reason == "stop", correct=first.correct
            )
            decision = decide(seen, self.recipe, group_accuracy=accuracy, seed=seed, index=index)
            continuation = decision if isinstance(decision, str) else self._continuation(index, first, decision, max_response_tokens)
            if isinstance(continuation, str):
                plan.skipped[continuation] += 1
            else:
                plan.continuations.append(continuation)
        return plan

    def join(self, continuation: Continuation, second: Response) -> Response:
        """Make one response of y1, the trigger and y2.

        Args:
            continuation: y1 and the trigger.
            second: what the engine sampled after them.

        Returns:
            The response. The trigger's tokens have log-probs of 0 and a loss mask of False; they count to the version that read them first.
        """
        first, kept = continuation.first.response, continuation.kept_tokens
        start = kept + len(continuation.trigger_token_ids)
        end = start + len(second.token_ids)
        token_ids = np.concatenate([continuation.prefix, second.token_ids])
        gap = len(continuation.trigger_token_ids)
        return Response(
            token_ids=token_ids,
            logprobs=np.concatenate([first.logprobs[:kept], np.zeros(gap, np.float32), second.logprobs]),
            loss_mask=np.concatenate([np.ones(kept, np.bool_), np.zeros(gap, np.bool_), np.ones(len(second.token_ids), np.bool_)]),
            version_spans=_joined_spans(first.version_spans, kept, second.version_spans, start),
            segments=(
                Segment(kind="y1", start=0, end=kept),
                Segment(kind="trigger", start=kept, end=start),
                Segment(kind="y2", start=start, end=end),
            ),
            finish_reason=second.finish_reason,
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
        )

    def _continuation(self, index: int, first: Scored, decision: Decision, max_response_tokens: int) -> Continuation | str:
        response = first.response
        kept, text = _own_tokens(response), decision.trigger.text
        if decision.cut:
            kept, rest = self._cut(response.token_ids[:kept])
            text = rest + text
        trigger = np.array(self._ids(text), dtype=np.int32)
        room = max_response_tokens - kept - len(trigger)
        if room < 1:
            return "no_room"
        return Continuation(
            index=index,
            first=first,
            kept_tokens=kept,
            trigger_token_ids=trigger,
            trigger_text=text,
            max_new_tokens=room,
            temperature=self.recipe.temperature,
            seed=decision.seed,
        )

    def _cut(self, token_ids: NDArray[np.int32]) -> tuple[int, str]:
        """How many tokens stay in front of the answer, and the text between the last of them and the cut.

        A cut may fall into a token; what is left of it is written anew with the trigger, so that the text is exactly the cut one.
        """
        wanted = cut_before_answer(self._text(token_ids))
        low, high = 0, len(token_ids)  # the longest start whose text is not longer than wanted
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self._text(token_ids[:middle])) <= len(wanted) else (low, middle - 1)
        while not wanted.startswith(self._text(token_ids[:low])):  # half a character at the end
            low -= 1
        return low, wanted[len(self._text(token_ids[:low])) :]

    def _text(self, token_ids: NDArray[np.int32]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _own_tokens(response: Response) -> int:
    """Tokens without the one that ended the response."""
    return len(response.token_ids) - (response.finish_reason == "stop")


def _joined_spans(first: Sequence[VersionSpan], kept: int, second: Sequence[VersionSpan], offset: int) -> tuple[VersionSpan, ...]:
    """Cover y1, the trigger and y2 without gaps, one span a version."""
    spans = [VersionSpan(start=span.start, end=min(span.end, kept), version=span.version) for span in first if span.start < kept]
    for span in second:
        start = spans[-1].end if spans else 0  # y2's first span begins with the trigger
        spans.append(VersionSpan(start=start, end=span.end + offset, version=span.version))
    merged: list[VersionSpan] = []
    for span in spans:
        if merged and merged[-1].version == span.version:
            span = VersionSpan(start=merged.pop().start, end=span.end, version=span.version)
        merged.append(span)
    return tuple(merged)

"""Forced rethinking's decisions: who goes on, from where, with which trigger, and what is kept. Pure functions and counts.

A rollout y1 that goes on becomes y1 + trigger + y2 (VL-Rethinker, arXiv 2504.08837, section 3.3). Owns the choices, all of them drawn from
a generator that is given, and the figures that follow from them. Must not know tokens, engines, Ray or configuration objects.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

TRANSITIONS = ("right_to_right", "right_to_wrong", "wrong_to_right", "wrong_to_wrong")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    r"""A text that makes the model think again.

    Example: ``Trigger(text="\n\nWait, does it seem right?", category="self_questioning", weight=1.0)``.
    """

    text: str
    category: str
    weight: float  # > 0, relative to the other triggers that may follow the same y1
    only_after: bool | None = None  # follows right (True) or wrong (False) y1s only, which leaks the label; None: any


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Who is made to think again, how, and what of it is kept; limits of None do not bind."""

    fraction: float  # of the eligible, 0 to 1
    triggers: tuple[Trigger, ...]
    temperature: float | None = None  # of y2; None: that of y1
    cut_fraction: float = 0.0  # of y1s that lose their answer before the trigger
    max_y1_tokens: int | None = None
    skip_wrong_above: float | None = None  # wrong y1s of groups with an accuracy above it are passed over
    correct_only: bool = False  # a wrong y2 is dropped and y1 stays
    y2_tokens: tuple[int, int] | None = None  # y2 must be longer than the first and shorter than the second
    max_per_prompt: int | None = None  # right y2s of one group
    max_waits: int | None = None  # in the trigger and y2 together


PAPER_CODE = Recipe(
    fraction=0.65,
    triggers=(
        Trigger(text="\n\nWait", category="self_questioning", weight=0.2),
        Trigger(text="\n\nWait, does it seem right?", category="self_questioning", weight=0.3),
        Trigger(text="\n\nWait, let's double check", category="self_verification", weight=0.5, only_after=True),
        Trigger(text="\n\nWait, there might be a mistake", category="self_correction", weight=0.5, only_after=False),
    ),
    temperature=0.9,
    cut_fraction=0.5,
    max_y1_tokens=1024,
    skip_wrong_above=0.7,
    correct_only=True,
    y2_tokens=(30, 1024),
    max_per_prompt=2,
    max_waits=4,
)
"""What VL-Rethinker's published code does. Its choice of the trigger leaks the gold label: "let's double check" means that y1 was right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstResponse:
    """What the decisions may look at of a y1."""

    num_tokens: int  # without its end-of-sequence token
    finished: bool  # ended by itself
    correct: bool  # seen by recipes with skip_wrong_above or only_after alone


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondResponse:
    """What acceptance looks at of a y2."""

    num_tokens: int
    correct: bool  # the final answer of y1 + trigger + y2
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """How one y1 goes on."""

    trigger: Trigger
    cut: bool  # lose the answer first
    seed: int  # of y2's samples


def decide(first: FirstResponse, recipe: Recipe, *, group_accuracy: float, seed: int, index: int) -> Decision | str:
    """Choose whether and how a response is made to go on.

    The same seed and index give the same draws, whatever the other responses of the group are.

    Args:
        first: the response y1.
        recipe: of the run.
        group_accuracy: share of the group's y1s that are right.
        seed: of the group.
        index: of the response in its group.

    Returns:
        The decision, or why the response is passed over: "unfinished", "empty", "too_long", "wrong_in_easy_group", "not_drawn".
    """
    if not first.finished:
        return "unfinished"
    if first.num_tokens == 0:
        return "empty"
    if recipe.max_y1_tokens is not None and first.num_tokens > recipe.max_y1_tokens:
        return "too_long"
    if recipe.skip_wrong_above is not None and group_accuracy > recipe.skip_wrong_above and not first.correct:
        return "wrong_in_easy_group"
    random = np.random.default_rng([seed, index])
    drawn, cut, trigger = random.random(3)
    if drawn >= recipe.fraction:
        return "not_drawn"
    return Decision(
        trigger=draw_trigger(recipe.triggers, trigger, correct=first.correct),
        cut=bool(cut < recipe.cut_fraction),
        seed=int(random.integers(2**62)),
    )


def draw_trigger(triggers: Sequence[Trigger], draw: float, *, correct: bool) -> Trigger:
    """Choose a trigger by weight.

    Args:
        triggers: of which those with another ``only_after`` are left out; without any ``only_after`` the choice is blind to ``correct``.
        draw: uniform in [0, 1).
        correct: whether y1 is right.

    Returns:
        The trigger.

    Raises:
        ValueError: when none may follow.
    """
    possible = [trigger for trigger in triggers if trigger.only_after in (None, correct)]
    if not possible:
        raise ValueError(f"no trigger may follow a {'right' if correct else 'wrong'} first response")
    edges = np.cumsum([trigger.weight for trigger in possible])
    return possible[min(int(np.searchsorted(edges, draw * edges[-1], side="right")), len(possible) - 1)]


def cut_before_answer(text: str) -> str:
    """Take a response's answer away, as VL-Rethinker's code does.

    Args:
        text: y1.

    Returns:
        The text before the last "Wait", then before the last box, then before the first "answer", then before the last blank line, each
        where there is one.
    """
    for mark in ("Wait", "\\boxed"):
        position = text.rfind(mark)
        text = text[:position] if position >= 0 else text
    answer = re.search("answer", text, re.IGNORECASE)
    text = text[: answer.start()] if answer else text
    blank = text.rfind("\n\n")
    return text[:blank].rstrip() if blank >= 0 else text


def accept(seconds: Sequence[SecondResponse], recipe: Recipe) -> list[str | None]:
    """Choose which continuations of one group are kept.

    Args:
        seconds: in the order of their y1s.
        recipe: of the run.

    Returns:
        None for a kept one, else why it is dropped: "length", "wrong", "enough_for_prompt", "too_many_waits".
    """
    verdicts: list[str | None] = []
    taken = 0
    for second in seconds:
        shortest, longest = recipe.y2_tokens or (0, np.inf)
        if recipe.y2_tokens is not None and not shortest < second.num_tokens < longest:
            verdicts.append("length")
        elif recipe.correct_only and not second.correct:
            verdicts.append("wrong")
        elif recipe.max_per_prompt is not None and taken >= recipe.max_per_prompt:
            verdicts.append("enough_for_prompt")
        else:
            taken += 1  # before the waits are counted, as in the authors' code
            waits = 1 + count_waits(second.text)  # one is the trigger's
            verdicts.append("too_many_waits" if recipe.max_waits is not None and waits > recipe.max_waits else None)
    return verdicts


def count_waits(text: str) -> int:
    """Count a text's turns by the words that VL-Rethinker's code counts.

    Args:
        text: a response.

    Returns:
        How often "wait,", "wait a" or "alternatively" is there, in any case.
    """
    lower = text.lower()
    return sum(lower.count(word) for word in ("wait,", "wait a", "alternatively"))


def rethinks(text: str, words: Iterable[str]) -> bool:
    """Tell whether a response rethinks by itself.

    Args:
        text: sampled from the model alone.
        words: that give it away, in any case; each must stand by itself: "wait" is not in "awaited".

    Returns:
        True when one of them is there.
    """
    return any(_standing_alone(word).search(text) for word in words)


@functools.cache
def _standing_alone(word: str) -> re.Pattern[str]:
    """The word between borders; a border is asked for only where the word itself begins or ends with a letter."""
    before, after = (r"(?<!\w)" if re.match(r"\w", word) else ""), (r"(?!\w)" if re.search(r"\w$", word) else "")
    return re.compile(before + re.escape(word) + after, re.IGNORECASE)


def transition(*, before: bool, after: bool) -> str:
    """Name the cell of y1 against y2.

    Args:
        before: y1 is right.
        after: the final answer is right.

    Returns:
        One of TRANSITIONS.
    """
    return f"{'right' if before else 'wrong'}_to_{'right' if after else 'wrong'}"


@dataclass(frozen=True, kw_only=True)
class RethinkingCounts:
    """What became of a set of rollouts; counts add over groups, actors and steps."""

    rollouts: int = 0  # first responses
    spontaneous: int = 0  # of them, those that rethink by themselves
    forced: int = 0  # went on, whether or not it was kept
    kept: int = 0
    generated_tokens: int = 0  # sampled, y1s and y2s, dropped ones included
    extra_tokens: int = 0  # of triggers and y2s, dropped ones included
    prefix_tokens: int = 0  # of prompt, y1 and trigger of the forced ones, which the engine reads before y2
    cached_tokens: int = 0  # of them, those that its prefix cache had
    transitions: Counter[str] = field(default_factory=Counter)  # of all forced ones, by TRANSITIONS
    skipped: Counter[str] = field(default_factory=Counter)  # passed over, by reason
    dropped: Counter[str] = field(default_factory=Counter)  # forced and not kept, by reason

    def __add__(self, other: RethinkingCounts) -> RethinkingCounts:
        """Counts of two disjoint sets of rollouts."""
        names = self.__dataclass_fields__
        return RethinkingCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def metrics(self) -> dict[str, float]:
        """The step metrics; shares of nothing are left out.

        Returns:
            ``rethinking/forced_fraction`` and ``spontaneous_ratio`` of the rollouts; the four transitions and ``kept_fraction`` of the
            forced ones; ``cached_fraction`` of what the engine had to read before the y2s; ``extra_tokens`` of all together; numbers of
            those passed over and dropped, by reason.
        """
        values: dict[str, float] = {}
        if self.rollouts:
            values["forced_fraction"] = self.forced / self.rollouts
            values["spontaneous_ratio"] = self.spontaneous / self.rollouts
        if self.forced:
            values["kept_fraction"] = self.kept / self.forced
            values |= {name: self.transitions[name] / self.forced for name in TRANSITIONS}
        if self.prefix_tokens:
            values["cached_fraction"] = self.cached_tokens / self.prefix_tokens
        values["extra_tokens"] = float(self.extra_tokens)
        values |= {f"skipped/{reason}": float(count) for reason, count in sorted(self.skipped.items())}
        values |= {f"dropped/{reason}": float(count) for reason, count in sorted(self.dropped.items())}
        return {f"rethinking/{name}": value for name, value in values.items()}

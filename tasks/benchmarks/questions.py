"""The nouns of a benchmark: its questions, what is asked of an answer, and its score.

Owns the contract between the adapters, the scorer and the report. Must not know files, models or how a score is found.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from algorithms.types import AnswerType
from tasks.prompts import IMAGE_MARKER

Row = Mapping[str, Any]
"""One row as published, without its pictures: a picture column's value is True where the row has a picture."""


class AnswerForm(str, Enum):
    """Where the prompt asked the answer to stand; only an answer that stands there counts as strict."""

    boxed = "boxed"  # in the last \\boxed{}
    line = "line"  # behind the last "Answer:"
    any = "any"  # the prompt names no form: a box, an answer line, or nothing but the answer


class Guess(str, Enum):
    """What a benchmark's own rule takes for the answer to a multiple-choice question where it found none."""

    none = "none"
    random = "random"  # one of the options
    nearest = "nearest"  # the option whose text is most like what was found


class Aggregation(str, Enum):
    """How the scores of questions become the benchmark's number."""

    micro = "micro"  # the mean over questions
    macro = "macro"  # the mean over strata of the means over their questions


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question, complete without its pictures: it can be scored again from this alone.

    Example: ``Question(question_id="17", body="<image>How many?", own_prompt="<image>How many? Answer with a number.",
    images=("decoded_image",), answer_type=AnswerType(kind="number"), gold=("3",), form=AnswerForm.any)``.
    """

    question_id: str  # unique in its benchmark
    body: str  # the question with its options, one "<image>" marker per picture
    own_prompt: str  # the whole text as the benchmark itself asks, with the same markers
    gold: tuple[str, ...]  # any of them is right; a letter for choice; empty: rules hold them
    form: AnswerForm  # that the benchmark's own prompt asks for
    images: tuple[str, ...] = ()  # columns, or paths below the benchmark's folder, in the order of the markers
    answer_type: AnswerType = field(default_factory=AnswerType)
    guess: Guess = Guess.none
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # breakdown -> this question's values, such as "subject"
    stratum: str = ""  # of a macro mean
    rules: Mapping[str, Any] = field(default_factory=dict)  # MEGA-Bench: metrics, weights, parser, gold fields; empty: answer_type
    unscorable: str = ""  # why no rule can judge an answer; empty: one can

    def prompt(self, suffix: str | None) -> str:
        """The whole text that a model is asked.

        Args:
            suffix: comes after the body; None: the benchmark's own prompt.

        Returns:
            Text with one "<image>" marker per picture.
        """
        return self.own_prompt if suffix is None else self.body + suffix

    def to_json(self) -> str:
        """Write it as JSON text; ``from_json`` reads it back."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Question:
        """Read what ``to_json`` wrote.

        Args:
            text: JSON.

        Returns:
            The question.

        Raises:
            ValueError, KeyError, TypeError: when it isn't a question.
        """
        values = json.loads(text)
        for name in ("gold", "images"):
            values[name] = tuple(values[name])
        values["groups"] = {name: tuple(found) for name, found in values["groups"].items()}
        values["form"], values["guess"] = AnswerForm(values["form"]), Guess(values["guess"])
        values["answer_type"] = AnswerType(**{**values["answer_type"], "options": tuple(values["answer_type"]["options"])})
        return Question(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one answer earned; strict and lenient are in [0, 1], and None together when no rule can judge the answer."""

    strict: float | None
    lenient: float | None
    method: str  # which rule decided: box, line, phrase, whole, none; or the metric's name
    answer: str = ""  # what was taken for the answer
    official: float | None = None  # with the benchmark's own guess where no answer was found; None: its rule guesses nothing
    not_scored: str = ""  # why there is no score


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """How one benchmark is read and reported. An adapter is a module that fills one in."""

    name: str
    title: str
    repository: str  # on Hugging Face
    files: tuple[str, ...]  # glob patterns below the benchmark's folder; every one must match
    columns: tuple[str, ...]  # that must be there, without pictures
    image_columns: tuple[str, ...]  # those that exist are read
    question: Callable[[Row, str], Question]  # a row and the path of its file below the folder; raises ValueError for a bad row
    breakdowns: tuple[str, ...]  # names of groups that the benchmark itself reports
    aggregation: Aggregation = Aggregation.micro
    optional_columns: tuple[str, ...] = ()  # read where they exist
    media_folder: bool = False  # pictures are files below the folder, not columns


def marked(text: str) -> str:
    """Text that can't be taken for a picture.

    Args:
        text: of a question, without markers of its own.

    Returns:
        The text; a literal "<image>" in it is written with a space.
    """
    return text.replace(IMAGE_MARKER, "<image >")

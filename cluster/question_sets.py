"""What an evaluation asks: benchmarks from their folders, or the held-out questions of a run's data.

Owns the choice of questions and how each becomes a prompt. Must not know Ray or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from algorithms.types import Prompt
from cluster.evaluation import held_out_questions
from cluster.evaluation_report import HELD_OUT, Reported, report_of
from conf.schema import Config, EvaluationPrompt
from tasks.benchmarks import BENCHMARKS
from tasks.benchmarks.questions import AnswerForm, Question
from tasks.benchmarks.reading import LocatedQuestion, read_questions, with_pictures
from tasks.dataset import PromptDataset

Pictures = Callable[[Sequence[LocatedQuestion]], Iterator[tuple[LocatedQuestion, tuple[str, ...]]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionSet:
    """The chosen questions of one benchmark, and the way to their pictures."""

    reported: Reported
    located: tuple[LocatedQuestion, ...]
    bad_rows: tuple[tuple[str, str], ...]
    pictures: Pictures
    suffix: str | None  # None: the questions' own prompts

    def prompt_of(self, question: Question) -> str:
        """The whole text that is asked.

        Args:
            question: of this set.

        Returns:
            Text with image markers.
        """
        return question.prompt(self.suffix)

    def prompts(self, wanted: Sequence[LocatedQuestion]) -> Iterator[tuple[Question, Prompt]]:
        """Make questions ready to be asked, a few at a time.

        Args:
            wanted: of this set.

        Yields:
            Each with its prompt, whose pictures are files.
        """
        for located, paths in self.pictures(wanted):
            question = located.question
            yield (
                question,
                Prompt(
                    prompt_id=f"{self.reported.name}/{question.question_id}",
                    question=self.prompt_of(question),
                    image_paths=paths,
                    answer=question.gold[0] if question.gold else "none",  # scored later, from the stored answer
                    category="",
                    source=self.reported.name,
                ),
            )


def question_sets(config: Config) -> list[QuestionSet]:
    """Read what a configuration asks for.

    Args:
        config: its data and evaluation sections are used.

    Returns:
        One set a benchmark; the held-out questions when none is named.

    Raises:
        ConfigError: for an unknown benchmark, before any file is read.
        DataError: when files are missing or damaged.
    """
    evaluation = config.evaluation
    if not evaluation.benchmarks:
        return [_held_out(config)]
    suffix = config.data.prompt_suffix if evaluation.prompt is EvaluationPrompt.suffix else None
    sets = []
    for reported in [report_of(name) for name in evaluation.benchmarks]:
        folder, benchmark = Path(evaluation.benchmarks_dir) / reported.name, BENCHMARKS[reported.name]
        found = read_questions(benchmark, folder)
        sets.append(
            QuestionSet(
                reported=reported,
                located=_chosen(found.questions, evaluation.questions_per_benchmark, evaluation.seed),
                bad_rows=found.bad,
                pictures=partial(_pictures_of, reported.name, folder, Path(config.data.image_cache)),
                suffix=suffix,
            )
        )
    return sets


def _pictures_of(
    name: str, folder: Path, cache: Path, wanted: Sequence[LocatedQuestion]
) -> Iterator[tuple[LocatedQuestion, tuple[str, ...]]]:
    return with_pictures(BENCHMARKS[name], folder.absolute(), wanted, cache)


def _chosen(questions: tuple[LocatedQuestion, ...], number: int, seed: int) -> tuple[LocatedQuestion, ...]:
    """All questions, or some of them, in their order."""
    if number == 0 or number >= len(questions):
        return questions
    chosen = np.random.default_rng(seed).choice(len(questions), size=number, replace=False)
    return tuple(questions[int(index)] for index in np.sort(chosen))


def _held_out(config: Config) -> QuestionSet:
    dataset = PromptDataset.held_out(config.data)
    prompts = held_out_questions(dataset, config.evaluation.num_questions)
    located = tuple(
        LocatedQuestion(
            question=Question(
                question_id=prompt.prompt_id,
                body=prompt.question,
                own_prompt=prompt.question + config.data.prompt_suffix,
                images=prompt.image_paths,
                gold=(prompt.answer,),
                answer_type=prompt.answer_type,
                form=AnswerForm.boxed,
                groups={"category": (prompt.category,), "source": (prompt.source,)},
            ),
            file=config.data.test_path,
            row=number,
        )
        for number, prompt in enumerate(prompts)
    )
    return QuestionSet(
        reported=report_of(HELD_OUT),
        located=located,
        bad_rows=tuple((row.row_id, row.reason) for row in dataset.bad_rows),
        pictures=lambda wanted: ((found, found.question.images) for found in wanted),
        suffix=None,
    )

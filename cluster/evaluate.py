"""`rethinker evaluate`: a model's answers to benchmarks or held-out questions, their scores, and the report.

Owns the order of things: questions, answers, scores, report. Each step reads what the one before has written down, so that every step
can be done again by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from actors.rethinking import evaluation_recipe_of
from cluster.answerers import Answerers
from cluster.answering import NobodyLeftError, QuestionDesk
from cluster.coldstart import prepare_data
from cluster.ending import INTERRUPTED_EXIT_CODE, run
from cluster.evaluation_folder import AnswerRow, EvaluationFolder
from cluster.fleet import Replica, RolloutFleet
from cluster.progress import Countdown, Progress
from cluster.question_sets import QuestionSet, question_sets
from cluster.rescore import score
from cluster.session import ray_session
from cluster.waiting import answer_within
from conf.checks import token_limits
from conf.schema import Config, Device, EvaluationMode, EvaluationPrompt
from tasks.benchmarks.questions import Question

FAILED_EXIT_CODE = 1
KEEP_ROWS = 64  # answers of one file
KEEP_SECONDS = 20.0  # answers are written at least so often
_SAMPLED_BYTES = 65536  # of each sixteenth of a weights file: a digest of many gigabytes in a moment

Asked = tuple[Question, Any]  # a question and its Prompt


def evaluate(config: Config, model_path: Path, output: Path) -> int:
    """Answer the questions that have no answer yet with a model, then score all answers and report.

    Args:
        config: checked; its data, model, rollout, reward and evaluation sections are used.
        model_path: Hugging Face folder.
        output: the evaluation's folder.

    Returns:
        The command's exit code: 0; 1 when all rollout actors died; 130 when it was interrupted. Answers are kept in any case.

    Raises:
        ConfigError, DataError, RunFolderError: before any actor is started.
    """
    progress = Progress()
    folder = EvaluationFolder(output)
    try:
        _answer(config, model_path, folder, progress)
        score(config, folder, progress)
    except KeyboardInterrupt:
        progress.say(f"interrupted; the answers so far are in {output}, the same command goes on")
        return INTERRUPTED_EXIT_CODE
    except NobodyLeftError as failure:
        progress.say(f"no rollout actor is left: {failure}\nthe answers so far are in {output}, the same command goes on")
        return FAILED_EXIT_CODE
    return 0


def _answer(config: Config, model_path: Path, folder: EvaluationFolder, progress: Progress) -> None:
    """Ask what the folder has no answer to."""
    prepare_data(config, progress)
    sets = question_sets(config)
    folder.open(_asked_settings(config, model_path), model=str(model_path))
    for chosen in sets:
        questions = [located.question for located in chosen.located]
        folder.keep_questions(chosen.reported.name, [(q, chosen.prompt_of(q)) for q in questions], chosen.bad_rows)
    limits = token_limits(config)
    mode = _stored_mode(config)
    number = sum(len(_unanswered(folder, chosen, limit, mode, carried=True)) for chosen in sets for limit in limits)
    if number == 0:
        progress.say("every question has its answer already")
        return
    config = engine_settings(config)
    with ray_session(config):
        run(_ask(config, str(model_path), folder, sets, progress))


def engine_settings(config: Config) -> Config:
    """What the rollout actors of an evaluation run with: whole prompts, room for the longest answer, no learner.

    Args:
        config: of the evaluation.

    Returns:
        The derived settings.
    """
    limit = max(token_limits(config))
    model = dataclasses.replace(config.model, max_response_tokens=limit)
    rollout = config.rollout
    if config.cluster.device is Device.cpu:  # where a sequence is always taken in at once (conf/checks.py)
        needed = model.max_prompt_tokens + limit + 1
        rollout = dataclasses.replace(rollout, max_batched_tokens=max(rollout.max_batched_tokens, needed))
    return dataclasses.replace(
        config,
        model=model,
        rollout=rollout,
        data=dataclasses.replace(config.data, prompt_suffix=""),
        learner=dataclasses.replace(config.learner, num_ranks=0),
    )


def _asked_settings(config: Config, model_path: Path) -> dict[str, Any]:
    """What answers depend on besides the questions."""
    model = config.model
    own = config.evaluation.prompt is EvaluationPrompt.own and bool(config.evaluation.benchmarks)
    return {
        "model_digest": model_digest(model_path),
        "prompt": config.evaluation.prompt.value if config.evaluation.benchmarks else EvaluationPrompt.suffix.value,
        "prompt_suffix": None if own else config.data.prompt_suffix,
        "dtype": model.dtype.value,
        "max_prompt_tokens": model.max_prompt_tokens,
        "pixels": [model.min_pixels, model.max_pixels],
        "max_images_per_prompt": model.max_images_per_prompt,
        "triggers": [[trigger.text, trigger.weight] for trigger in evaluation_recipe_of(config.rethinking).triggers],
    }


def model_digest(model_path: Path) -> str:
    """Tell models apart by their files: configuration and tokenizer whole, of the weights a sample of each part.

    Args:
        model_path: Hugging Face folder.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in model_path.iterdir() if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for part in range(16 if size > 16 * _SAMPLED_BYTES else 1):
                file.seek(part * size // 16)
                digest.update(file.read(_SAMPLED_BYTES if size > 16 * _SAMPLED_BYTES else size))
    return digest.hexdigest()[:16]


def _stored_mode(config: Config) -> str:
    """The mode that answers are asked for and kept under; what is made to go on is scored as forced and as bound."""
    return EvaluationMode.none.value if config.evaluation.mode is EvaluationMode.none else EvaluationMode.forced.value


def _unanswered(folder: EvaluationFolder, chosen: QuestionSet, limit: int, mode: str, *, carried: bool = False) -> list[Any]:
    """The located questions without an answer at a token limit.

    An answer that ended by itself at a lower limit is the greedy answer at any higher one; it is written down again, not asked for
    again. With ``carried`` such questions are only counted out.
    """
    name = chosen.reported.name
    known: set[str] = set()
    final: dict[str, AnswerRow] = {}
    for row in folder.answers(name, mode):
        if row.token_limit == limit:
            known.add(row.question_id)
        elif row.token_limit < limit and row.is_final:
            final[row.question_id] = row
    wanted = [located for located in chosen.located if located.question.question_id not in known]
    again = [final[located.question.question_id] for located in wanted if located.question.question_id in final]
    if not carried:
        folder.add_answers(name, mode, [dataclasses.replace(row, token_limit=limit) for row in again])
    return [located for located in wanted if located.question.question_id not in final]


async def _ask(config: Config, model_path: str, folder: EvaluationFolder, sets: Sequence[QuestionSet], progress: Progress) -> None:
    fleet = RolloutFleet(config, model_path, replay=None)
    try:
        with progress.phase(f"starting {config.rollout.num_actors} rollout actors"):
            await fleet.start(version=0)
        answerers = Answerers(config, fleet)
        for limit in token_limits(config):
            for chosen in sets:
                wanted = _unanswered(folder, chosen, limit, _stored_mode(config))
                if not wanted:
                    continue
                title = f"{chosen.reported.name}, {limit} tokens"
                countdown = Countdown(progress, title, len(wanted))
                with progress.phase(title), _Keeper(folder, chosen.reported.name, limit, _stored_mode(config), countdown) as keeper:
                    desk: QuestionDesk[Asked, AnswerRow] = QuestionDesk(
                        questions=chosen.prompts(wanted),
                        keep=lambda _, row, keeper=keeper: keeper.keep(row),
                        give_up=lambda asked, reason, keeper=keeper: keeper.give_up(asked[0], reason),
                        at_once=config.rollout.max_concurrent_sequences,
                    )
                    await _first_error(answerers.serve(desk, _asking(config, limit)))
    finally:
        await fleet.close()


def _asking(config: Config, limit: int) -> Callable[[Replica, Asked], Awaitable[AnswerRow]]:
    """How a replica answers a question within a token limit."""

    async def ask(replica: Replica, asked: Asked) -> AnswerRow:
        question, prompt = asked
        call = replica.actor.evaluate.remote([prompt], limit, config.evaluation.mode)
        answers, bad = await answer_within(call, config.rollout.timeout_s, f"{replica.name} to answer {prompt.prompt_id}")
        if bad:
            return _without_answer(question, limit, bad[0][1])
        (answer,) = answers
        return AnswerRow(
            question_id=question.question_id,
            token_limit=limit,
            response=answer.response,
            num_tokens=answer.num_response_tokens,
            finish_reason=answer.finish_reason,
            first_response=None if answer.forced is None else answer.forced.y1,
            extra_tokens=0 if answer.forced is None else answer.forced.extra_tokens,
            rethinks=answer.rethinks,
            passed_over=answer.passed_over,
        )

    return ask


def _without_answer(question: Question, limit: int, reason: str) -> AnswerRow:
    return AnswerRow(question_id=question.question_id, token_limit=limit, response="", num_tokens=0, finish_reason="", problem=reason)


async def _first_error(serving: Any) -> None:
    """Await, with the first error of a group in the group's place."""
    try:
        await serving
    except* Exception as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class _Keeper:
    """Writes answers down in parts, the last one also when the evaluation ends early."""

    def __init__(self, folder: EvaluationFolder, benchmark: str, limit: int, mode: str, countdown: Countdown) -> None:
        self._folder, self._benchmark, self._limit, self._mode, self._countdown = folder, benchmark, limit, mode, countdown
        self._rows: list[AnswerRow] = []
        self._written = time.monotonic()

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def keep(self, row: AnswerRow) -> None:
        """Take an answer."""
        self._rows.append(row)
        self._countdown.one()
        if len(self._rows) >= KEEP_ROWS or time.monotonic() - self._written > KEEP_SECONDS:
            self._write()

    def give_up(self, question: Question, reason: str) -> None:
        """Take a question that has no answer."""
        self.keep(_without_answer(question, self._limit, reason))

    def _write(self) -> None:
        self._folder.add_answers(self._benchmark, self._mode, self._rows)
        self._rows, self._written = [], time.monotonic()

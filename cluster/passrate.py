"""`rethinker data passrate`: how often a model solves each prompt, sampled on the rollout actors.

Owns the journal that makes it resumable. What is done with the rates is a selection's business.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.worker import RolloutRequest
from cluster.answerers import Answerers
from cluster.answering import NobodyLeftError, QuestionDesk
from cluster.ending import INTERRUPTED_EXIT_CODE, run
from cluster.evaluate import model_digest
from cluster.fleet import Replica, RolloutFleet
from cluster.progress import Progress
from cluster.session import ray_session
from cluster.waiting import answer_within
from conf.schema import AdvantageKind, Config
from tasks.dataset import PromptDataset
from tasks.errors import DataError
from tasks.rewriting import write_rows

COLUMN = "pass_rate"
JOURNAL = "pass_rates.journal"
FAILED_EXIT_CODE = 1
REPORT_EVERY = 512  # prompts
CALLS_AT_ONCE = 2  # of each rollout actor, so that its engine never waits for the next


class Journal:
    """What is known so far, one line a prompt; a line that a killed process left half written is dropped.

    Args:
        path: of the file.
        settings: that the rates depend on, its first line.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.rates: dict[int, float] = {}  # by row number
        self.bad: dict[int, str] = {}  # rows that can't be sampled, with the reason
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        whole = lines[:-1]  # a whole line ends with a line break
        if whole:
            self._read(whole, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:  # what follows is appended to whole lines
            file.write(b"".join(line + b"\n" for line in whole or [json.dumps(dict(settings)).encode()]))

    def add(self, found: Mapping[int, float | str]) -> None:
        """Keep what was found.

        Args:
            found: a pass rate, or the reason why there is none, by row number.
        """
        with open(self._path, "a") as file:
            for row, result in found.items():
                name, known = ("bad", self.bad) if isinstance(result, str) else ("rate", self.rates)
                known[row] = result  # type: ignore[index]
                file.write(json.dumps({"row": row, name: result}) + "\n")

    def _read(self, lines: list[bytes], settings: Mapping[str, Any]) -> None:
        try:
            written, *entries = [json.loads(line) for line in lines]
        except ValueError as error:
            raise DataError(f"{self._path} is damaged: {error}") from error
        for key, value in settings.items():
            if written.get(key) != value:
                raise DataError(f"{self._path} was begun with {key} = {written.get(key)!r}, now it is {value!r}; name a new folder")
        for entry in entries:
            (self.bad if "bad" in entry else self.rates)[entry["row"]] = entry.get("bad", entry.get("rate"))


def passrate(config: Config, model_path: Path, output: Path, *, samples: int) -> int:
    """Sample each prompt several times and write the data set with its pass rates.

    Args:
        config: checked; its data, model, rollout and reward sections are used.
        model_path: Hugging Face folder.
        output: folder to write; where a former call was cut short, this one goes on.
        samples: of each prompt.

    Returns:
        The command's exit code: 0; 1 when all rollout actors died; 130 when it was interrupted. What is known is kept in any case.

    Raises:
        DataError: before any actor is started.
    """
    progress = Progress()
    dataset = PromptDataset(config.data.path, config.data)
    settings = {
        "model": model_digest(model_path),
        "samples": samples,
        "seed": config.run.seed,
        "temperature": config.rollout.temperature,
        "max_response_tokens": config.model.max_response_tokens,
        "extraction": config.reward.extraction.value,
        "prompt_suffix": config.data.prompt_suffix,
        "data": zlib.crc32("\0".join(prompt.prompt_id for prompt in dataset).encode(errors="surrogatepass")),
    }
    journal = Journal(output / JOURNAL, settings)
    left = [i for i, row in enumerate(dataset.row_numbers) if row not in journal.rates and row not in journal.bad]
    if not left and any(output.glob("data.*")):
        progress.say(f"nothing left to do: {output} holds the pass rates of all {len(dataset)} prompts")
        return 0
    if left:
        config = dataclasses.replace(
            config,
            algorithm=dataclasses.replace(config.algorithm, samples_per_prompt=samples, advantage=AdvantageKind.mean),
            rethinking=dataclasses.replace(config.rethinking, enabled=False),
            learner=dataclasses.replace(config.learner, num_ranks=0),
        )
        progress.say(f"{len(left)} of {len(dataset)} prompts to sample {samples} times")
        try:
            with ray_session(config):
                run(_sample(config, str(model_path), dataset, left, journal, progress))
        except KeyboardInterrupt:
            progress.say(f"interrupted; what is known is in {output}, the same command goes on")
            return INTERRUPTED_EXIT_CODE
        except NobodyLeftError as failure:
            progress.say(f"no rollout actor is left: {failure}\nwhat is known is in {output}, the same command goes on")
            return FAILED_EXIT_CODE
    images = (path for prompt in dataset for path in prompt.image_paths)
    write_rows(config.data.path, output, columns={COLUMN: journal.rates}, image_paths=images)
    solved = sorted(journal.rates.values())
    never, always = sum(rate == 0.0 for rate in solved), sum(rate == 1.0 for rate in solved)
    progress.say(f"{len(solved)} prompts: {never} never solved, {always} always, {len(journal.bad)} can't be used; written to {output}")
    return 0


async def _sample(config: Config, model_path: str, dataset: PromptDataset, left: list[int], journal: Journal, progress: Progress) -> None:
    """Hand out the prompts that are left, a call's worth at a time."""
    fleet = RolloutFleet(config, model_path, replay=None)
    size = config.rollout.prompts_per_call

    async def ask(replica: Replica, chunk: list[int]) -> list[float | str]:
        call = replica.actor.pass_rates.remote(list(_requests(config, dataset, chunk)))
        return await answer_within(call, config.rollout.timeout_s, f"{replica.name} to sample {len(chunk)} prompts")

    def keep(chunk: list[int], results: list[float | str]) -> None:
        before = len(journal.rates) // REPORT_EVERY
        journal.add({dataset.row_numbers[index]: result for index, result in zip(chunk, results, strict=True)})
        if len(journal.rates) // REPORT_EVERY > before:
            progress.say(f"{len(journal.rates)} prompts sampled, mean pass rate {sum(journal.rates.values()) / len(journal.rates):.3f}")

    desk: QuestionDesk[list[int], list[float | str]] = QuestionDesk(
        questions=(left[i : i + size] for i in range(0, len(left), size)),
        keep=keep,
        give_up=lambda chunk, reason: keep(chunk, [reason] * len(chunk)),
        at_once=CALLS_AT_ONCE,
    )
    try:
        with progress.phase("starting the rollout actors"):
            await fleet.start(version=0)
        with progress.phase("sampling"):
            await Answerers(config, fleet).serve(desk, ask)
    finally:
        await fleet.close()


def _requests(config: Config, dataset: PromptDataset, indices: list[int]) -> Iterator[RolloutRequest]:
    for index in indices:
        group_id = f"{dataset[index].prompt_id}@passrate"
        seed = zlib.crc32(f"{config.run.seed}/{group_id}".encode(errors="surrogatepass"))
        yield RolloutRequest(group_id=group_id, turn=index, prompt=dataset[index], seed=seed)

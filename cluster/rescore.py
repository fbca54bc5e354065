"""Scores and report from an evaluation's folder alone; needs neither Ray nor the model."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.evaluation_folder import EvaluationFolder
from cluster.evaluation_report import Intervals, benchmark_report, markdown, report_of
from cluster.evaluation_scoring import score_benchmark
from cluster.progress import Countdown, Progress
from cluster.run_folder import RunFolderError
from conf.schema import Config, EvaluationPrompt
from tasks.benchmarks.paper import COLUMNS
from tasks.grading import GraderPool


def rescore(config: Config, output: Path) -> int:
    """Score the answers of a former evaluation anew, and report.

    Args:
        config: its reward and evaluation sections are used.
        output: the evaluation's folder.

    Returns:
        The command's exit code, 0.

    Raises:
        RunFolderError: when the folder holds no evaluation, or something in it can't be read.
    """
    score(config, EvaluationFolder(output), Progress())
    return 0


def score(config: Config, folder: EvaluationFolder, progress: Progress) -> None:
    """Score every answer in a folder and write the report.

    Args:
        config: its reward and evaluation sections are used.
        folder: of the evaluation.
        progress: told how far it is, and the result.

    Raises:
        RunFolderError: when something in the folder can't be read.
    """
    asyncio.run(_score(config, folder, progress))


async def _score(config: Config, folder: EvaluationFolder, progress: Progress) -> None:
    settings = folder.read_settings()
    evaluation, reward = config.evaluation, config.reward
    intervals = Intervals(confidence=evaluation.confidence, resamples=evaluation.resamples, seed=evaluation.seed)
    names = sorted(folder.benchmarks(), key=lambda name: COLUMNS.index(name) if name in COLUMNS else -1)
    if not names:
        raise RunFolderError(f"{folder.path} holds no questions to score")
    grader = GraderPool(processes=reward.grader_processes, timeout_s=reward.grader_timeout_s, memory_bytes=reward.grader_memory_bytes)
    found = []
    try:
        for name in names:
            reported = report_of(name)
            questions, bad_rows = folder.questions(name)
            number = sum(1 for mode in folder.modes(name) for _ in folder.answers(name, mode))
            with progress.phase(f"scoring {number} answers of {name}"):
                scored = await score_benchmark(
                    folder,
                    name,
                    grader,
                    own_prompt=settings["prompt"] == EvaluationPrompt.own.value,
                    guess=evaluation.official_guess,
                    seed=evaluation.seed,
                    progress=Countdown(progress, f"scoring {name}", number).one,
                )
            found.append(benchmark_report(reported, questions, scored, bad_rows, intervals))
    finally:
        grader.close()
    report = {
        "model": settings.pop("model", ""),
        "settings": settings,
        "intervals": dataclasses.asdict(intervals),
        "grades": dict(grader.counts),
        "benchmarks": found,
    }
    folder.write_report(report, markdown(report))
    _tell(report, progress.say)
    progress.say(f"the evaluation is in {folder.path}: report.md, report.json, answers/, scores/")


def _tell(report: dict[str, Any], say: Callable[[str], None]) -> None:
    """The result in a line for each benchmark, mode and limit."""
    for found in report["benchmarks"]:
        for result in found["results"]:
            low, high = result["interval_lenient"]
            say(
                f"{found['benchmark']}, {result['mode']}, {result['token_limit']} tokens: lenient {result['accuracy_lenient']:.3f}"
                f" ({low:.3f} to {high:.3f}), strict {result['accuracy_strict']:.3f}, truncated {result['truncated_fraction']:.3f},"
                f" {result['scored']} scored, {result['answers'] - result['scored'] + result['missing']} not"
            )

"""`rethinker evaluate`: greedy accuracy of a model on a data set."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from cluster.coldstart import prepare_data
from cluster.evaluation import held_out_questions, report
from cluster.fleet import RolloutFleet
from cluster.progress import Progress
from cluster.run_folder import write_json
from cluster.session import ray_session
from conf.schema import Config
from tasks.dataset import PromptDataset


def evaluate(config: Config, model_path: Path, output: Path) -> int:
    """Answer the held-out questions with a model and report the accuracies.

    Args:
        config: checked; its data, rollout and evaluation sections are used.
        model_path: Hugging Face folder.
        output: JSON file to write.

    Returns:
        The command's exit code, 0.

    Raises:
        DataError: before any actor is started.
    """
    progress = Progress()
    prepare_data(config, progress)
    questions = held_out_questions(PromptDataset(config.data.test_path, config.data), config.evaluation.num_questions)
    config = dataclasses.replace(config, learner=dataclasses.replace(config.learner, num_ranks=0))
    with ray_session(config):
        result = asyncio.run(_evaluate(config, str(model_path), questions, progress))
    for name, values in {"all": result, **result["categories"]}.items():
        accuracies = f"lenient {values['accuracy_lenient']:.3f}, strict {values['accuracy_strict']:.3f}"
        progress.say(f"{name}: {accuracies}, {values['questions']} questions")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    progress.say(f"written to {output}")
    return 0


async def _evaluate(config: Config, model_path: str, questions: list, progress: Progress) -> dict:
    fleet = RolloutFleet(config, model_path, replay=None)
    try:
        with progress.phase("starting the rollout actors"):
            await fleet.start(version=0)
        with progress.phase(f"answering {len(questions)} questions"):
            limit = config.evaluation.max_response_tokens or config.model.max_response_tokens
            return report(*await fleet.evaluate(questions, max_response_tokens=limit))
    finally:
        await fleet.close()

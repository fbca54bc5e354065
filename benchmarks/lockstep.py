"""What it costs that synchronous runs are the same bit for bit: a step's prompts in lockstep against the same prompts as they come.

    python -m benchmarks.lockstep --model .cache/coldstart/HASH

Two rollout actors with an engine each, the quickstart's step (64 prompts x 8), and a replay actor; rounds alternate between them.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from pathlib import Path

import ray

from actors.actor import RolloutActor
from benchmarks.end_to_end import QUICKSTART, WARM_STEPS, _through_actor, _timed
from benchmarks.report import Series, conditions, table
from conf.loading import load_config
from conf.schema import Config
from replay.actor import ReplayActor
from tasks.dataset import PromptDataset


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="cold-started quickstart model")
    parser.add_argument("--data", default=".cache/quickstart/data/train")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    config = load_config(str(QUICKSTART), [f"model.path={arguments.model}", "coldstart.steps=0", f"data.path={arguments.data}"])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        seconds = asyncio.run(rounds(config, arguments.rounds))
    finally:
        ray.shutdown()
    size = config.algorithm.prompts_per_step * config.algorithm.samples_per_prompt
    print(conditions(f"python -m benchmarks.lockstep --rounds {arguments.rounds}"))
    print(
        table(
            f"Rollouts of a step, {config.algorithm.prompts_per_step} prompts x {config.algorithm.samples_per_prompt}",
            Series("in lockstep", [size / s for s in seconds[True]], "trajectories/s"),
            Series("as they come", [size / s for s in seconds[False]], "trajectories/s"),
        )
    )


async def rounds(config: Config, count: int) -> dict[bool, list[float]]:
    """Seconds of each round, by whether it went in lockstep."""
    dataset = PromptDataset(config.data.path)
    prompts = [dataset[index] for index in range(config.algorithm.prompts_per_step)]
    replay = ReplayActor.remote(config.replay, seed=1)
    configs = {mode: dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, lockstep=mode)) for mode in (True, False)}
    actors = {mode: RolloutActor.remote(configs[mode], str(config.model.path), replay, int(mode)) for mode in configs}
    await asyncio.gather(*(actor.start.remote(0) for actor in actors.values()))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * (count + WARM_STEPS)):
        mode = number % 2 == number // 2 % 2  # which of the two goes first changes from round to round
        took = await _timed(lambda mode=mode, number=number: _through_actor(actors[mode], configs[mode], prompts, number))
        if number >= 2 * WARM_STEPS:
            seconds[mode].append(took)
    await asyncio.gather(*(actor.close.remote() for actor in actors.values()))
    return seconds


if __name__ == "__main__":
    main()

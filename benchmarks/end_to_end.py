"""How fast the whole loop, the rollouts and the update are, each against its plain peer in the same run.

    python -m benchmarks.end_to_end --model .cache/coldstart/HASH --trl-python /path/to/venv/bin/python

- system: one training step (64 prompts x 8, one update) against TRL's GRPOTrainer with Hugging Face generate,
  on questions with one image each
- rollout: groups per second through the rollout actor into replay, against the same requests given straight to vLLM's engine
- update: the learner's update against the same batch in a plain DeepSpeed loop

Rounds are interleaved, so that a machine that slows down slows both. Read the ratios; the absolute figures are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute
import ray

from actors.actor import RolloutActor
from actors.engine import RolloutEngine
from actors.worker import RolloutRequest
from algorithms.types import Prompt
from benchmarks.plain_update import PlainDeepSpeedLoop
from benchmarks.report import Series, conditions, table
from cluster.metrics import read_metrics
from conf.loading import load_config
from conf.schema import Config
from conf.sizes import in_lockstep
from learner.deepspeed_engine import RankAddress
from learner.worker import LearnerWorker
from replay.actor import ReplayActor
from tasks.dataset import PromptDataset
from tasks.images import load_image
from tasks.prompts import PromptEncoder, allowed_token_ids, load_tokenizer

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "conf" / "experiment" / "quickstart.yaml"
PORT = 29731  # of the single learner rank, on loopback
CORES = 2  # in the synchronous mode rollout actors and learner ranks take turns on them
WARM_STEPS = 1  # of each process, not counted


def main() -> None:
    """Run the chosen comparisons and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="cold-started quickstart model")
    parser.add_argument("--trl-python", type=Path, help="Python of a virtual environment with TRL; without it `system` is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=CORES, help="rollout actors, and learner ranks, on our side of `system`")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a round of `system`")
    parser.add_argument("--only", choices=("system", "rollout", "update"))
    arguments = parser.parse_args()
    config = load_config(str(QUICKSTART), [f"model.path={arguments.model}", "coldstart.steps=0", "replay.mode=none"])
    print(conditions("python -m benchmarks.end_to_end " + " ".join("PATH" if Path(word).is_absolute() else word for word in sys.argv[1:])))
    if arguments.only in (None, "system") and arguments.trl_python:
        ours = system(config, arguments.trl_python, rounds=arguments.rounds, steps=arguments.steps, workers=arguments.workers)
        print(ours, flush=True)
    if arguments.only in (None, "rollout"):
        print(asyncio.run(rollout(config, rounds=arguments.rounds)), flush=True)
    if arguments.only in (None, "update"):
        print(update(config, rounds=arguments.rounds), flush=True)


def system(config: Config, trl_python: Path, *, rounds: int, steps: int, workers: int) -> str:
    """Whole steps of both systems, in processes of their own, one after the other in each round."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        theirs += [trajectories / s for s, trajectories in _trl_steps(config, trl_python, steps)]
        ours += [trajectories / s for s, trajectories in _rethinker_steps(config, steps, workers)]
    return table(
        f"Training step, {config.algorithm.prompts_per_step} prompts x {config.algorithm.samples_per_prompt}, one update",
        Series(f"Rethinker, synchronous, {workers} rollout actors, {workers} learner ranks", ours, "trajectories/s"),
        Series("TRL GRPOTrainer, Hugging Face generate", theirs, "trajectories/s"),
    )


def _trl_steps(config: Config, python: Path, steps: int) -> list[tuple[float, int]]:
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "model": str(Path(config.model.path).resolve()),
            "data": str(Path(config.data.path).resolve()),
            "prompts": config.algorithm.prompts_per_step,
            "samples": config.algorithm.samples_per_prompt,
            "steps": steps + WARM_STEPS,
            "max-tokens": config.model.max_response_tokens,
            "suffix": config.data.prompt_suffix,
        }
        command = [str(python), str(ROOT / "benchmarks" / "trl_step.py")]
        command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"TRL's side failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return [(seconds, result["trajectories"]) for seconds in result["seconds"][WARM_STEPS:]]


def _rethinker_steps(config: Config, steps: int, workers: int) -> list[tuple[float, int]]:
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"model.path={config.model.path}", "coldstart.steps=0", "replay.mode=none", "data.categories=[shapes]", f"run.dir={folder}/run",
            f"run.num_steps={steps + WARM_STEPS}", "data.generate=", "data.test_path=", "checkpoint.every_steps=0",
            "cluster.dashboard=false", f"cluster.num_cpus={2 * workers}", f"rollout.num_actors={workers}", f"learner.num_ranks={workers}",
            *(f"{role}.threads={max(CORES // workers, 1)}" for role in ("rollout", "learner")),
        ]  # fmt: skip
        command = [sys.executable, "-m", "cluster", "train", str(QUICKSTART), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"our side failed:\n{(done.stdout + done.stderr)[-3000:]}")
        rows = read_metrics(Path(folder) / "run" / "metrics.jsonl")[WARM_STEPS:]
    return [(row["time/step_s"], row["rollout/trajectories"]) for row in rows]


async def rollout(config: Config, *, rounds: int) -> str:
    """The same prompts through the actor (images, template, grades, advantages, replay) and straight to an engine of its own."""
    prompts = [prompt for prompt in PromptDataset(config.data.path) if prompt.image_paths][: config.algorithm.prompts_per_step]
    trajectories = len(prompts) * config.algorithm.samples_per_prompt
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    replay = ReplayActor.remote(dataclasses.replace(config.replay, max_trajectories=10**6), seed=1)
    actor = RolloutActor.remote(config, str(config.model.path), replay, 0)
    await actor.start.remote(0)
    direct = await DirectEngine.start(config, prompts)
    ours: list[float] = []
    theirs: list[float] = []
    try:
        for number in range(rounds + WARM_STEPS):
            actor_s = await _timed(lambda number=number: _through_actor(actor, config, prompts, number))
            direct_s = await _timed(lambda number=number: direct.round(number))
            if number >= WARM_STEPS:
                ours.append(trajectories / actor_s)
                theirs.append(trajectories / direct_s)
    finally:
        await direct.engine.close()
        await actor.close.remote()
        ray.shutdown()
    return table(
        f"Rollouts, {len(prompts)} prompts with an image x {config.algorithm.samples_per_prompt}",
        Series("through the rollout actor into replay", ours, "trajectories/s"),
        Series("straight to vLLM's engine", theirs, "trajectories/s"),
    )


async def _timed(work: Callable[[], Awaitable[Any]]) -> float:
    begin = time.monotonic()
    await work()
    return time.monotonic() - begin


async def _through_actor(actor: Any, config: Config, prompts: Sequence[Prompt], number: int) -> None:
    requests = [
        RolloutRequest(group_id=f"{p.prompt_id}@{number}", turn=number * len(prompts) + i, prompt=p, seed=number * 1000 + i)
        for i, p in enumerate(prompts)
    ]
    size = len(requests) if in_lockstep(config) else config.rollout.prompts_per_call  # as the controller hands them out
    await asyncio.gather(*(actor.rollout.remote(requests[i : i + size]) for i in range(0, len(requests), size)))


@dataclasses.dataclass
class DirectEngine:
    """vLLM's AsyncLLM with prompts that are ready: images decoded, token ids made."""

    engine: RolloutEngine
    config: Config
    inputs: list[tuple[Any, list, list[str]]]
    allowed: list[int]

    @classmethod
    async def start(cls, config: Config, prompts: Sequence[Prompt]) -> DirectEngine:
        """Start an engine with the actor's settings and prepare the prompts."""
        engine = RolloutEngine(str(config.model.path), model=config.model, rollout=config.rollout, device=config.cluster.device, seed=1)
        await engine.start()
        tokenizer = load_tokenizer(config.model.path)
        model = config.model
        encoder = PromptEncoder.of_run(tokenizer, model, config.data)
        inputs = []
        for prompt in prompts:
            images = [load_image(path) for path in prompt.image_paths]
            token_ids = encoder.encode(prompt, [image.size for image in images])
            inputs.append((token_ids, [image.image for image in images], [image.ref.sha256 for image in images]))
        return cls(engine=engine, config=config, inputs=inputs, allowed=allowed_token_ids(tokenizer))

    async def round(self, number: int) -> None:
        """All prompts at once, nothing done with the answers."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        async def one(index: int, token_ids: Any, images: list, hashes: list[str]) -> None:
            prompt = {"prompt_token_ids": token_ids.tolist(), "multi_modal_data": {"image": images}, "multi_modal_uuids": {"image": hashes}}
            params = SamplingParams(
                n=self.config.algorithm.samples_per_prompt,
                temperature=self.config.rollout.temperature,
                max_tokens=self.config.model.max_response_tokens,
                seed=number * 1_000_003 + index * 1009,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                allowed_token_ids=self.allowed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            async for _ in self.engine._engine.generate(prompt, params, f"direct-{number}-{index}"):
                pass

        await asyncio.gather(*(one(index, *prompt) for index, prompt in enumerate(self.inputs)))


def update(config: Config, *, rounds: int) -> str:
    """The same batch of rolled out trajectories through the learner and through a plain DeepSpeed loop, in one process."""
    shard = asyncio.run(_roll_out_once(config))
    address = RankAddress(rank=0, world_size=1, master_address="127.0.0.1", master_port=PORT)
    learner = LearnerWorker(config, config.model.path, address)
    plain = PlainDeepSpeedLoop(config, shard)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds + WARM_STEPS):
        begin = time.monotonic()
        learner.update(shard, step=number)
        middle = time.monotonic()
        plain.update()
        end = time.monotonic()
        if number >= WARM_STEPS:
            ours.append(shard.num_rows / (middle - begin))
            theirs.append(shard.num_rows / (end - middle))
    learner.close()
    return table(
        f"Update, {shard.num_rows} trajectories, ZeRO {config.learner.zero_stage}",
        Series("learner", ours, "trajectories/s"),
        Series("plain DeepSpeed loop, padded rows sorted by length", theirs, "trajectories/s"),
    )


async def _roll_out_once(config: Config) -> Any:
    """One step's batch; without zero advantages, which the learner leaves out and a plain loop doesn't."""
    prompts = [prompt for prompt in PromptDataset(config.data.path) if prompt.image_paths][: config.algorithm.prompts_per_step]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        replay = ReplayActor.remote(config.replay, seed=1)
        actor = RolloutActor.remote(config, str(config.model.path), replay, 0)
        await actor.start.remote(0)
        await _through_actor(actor, config, prompts, 0)
        draw = replay.sample.options(num_returns=2).remote(
            num_updates=1,
            batch_size=len(prompts) * config.algorithm.samples_per_prompt,
            num_shards=1,
            policy_version=0,
            num_groups=len(prompts),
        )
        _, shard = ray.get(draw, timeout=120)
        await actor.close.remote()
        return shard.filter(pyarrow.compute.not_equal(shard["advantage"], 0.0))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()

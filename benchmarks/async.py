"""What running ahead is worth: asynchronous steps against synchronous ones, and against the ideal of a perfect overlap.

    python -m benchmarks.async --only timed
    python -m benchmarks.async --only real --model .cache/coldstart/HASH

- timed: the real controller, admission, ledger and replay actor around engines and a learner that only take time, with the proportions of a
  7B run on 8 GPUs (4 engines, 4 learner ranks), scaled down twenty times
- real: `rethinker train` with the quickstart's model, engine and learner on a core each

The ideal step is max(rollout, update), both as the synchronous steps of the same run took them. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ray

from benchmarks.report import conditions
from benchmarks.timed_roles import Proportions, TimedFleet, TimedLearner, TimedPrompts
from cluster.bad_rows import BadRows
from cluster.controller import Controller
from cluster.ledger import PromptLedger
from cluster.metrics import read_metrics
from conf.loading import load_config
from conf.schema import Config
from replay.actor import ReplayActor

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "conf" / "experiment" / "quickstart.yaml"
PROPORTIONS = (
    Proportions("update-bound", update_s=60.0),
    Proportions("balanced", update_s=36.0),
    Proportions("rollout-bound", update_s=25.0),
)
Rows = list[dict[str, float]]


def main() -> None:
    """Run the chosen comparisons and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("timed", "real"), required=True)
    parser.add_argument("--model", type=Path, help="cold-started quickstart model, for `real`")
    parser.add_argument("--proportions", nargs="*", default=[p.name for p in PROPORTIONS], choices=[p.name for p in PROPORTIONS])
    parser.add_argument("--staleness", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="counted steps of a round, after max_staleness + 1 others")
    parser.add_argument("--words", nargs="*", default=[], help="further settings of `real`, key=value")
    arguments = parser.parse_args()
    print(conditions("python -m benchmarks.async " + " ".join("PATH" if Path(word).is_absolute() else word for word in sys.argv[1:])))
    options = {"staleness": arguments.staleness, "rounds": arguments.rounds, "steps": arguments.steps}
    if arguments.only == "timed":
        for proportions in PROPORTIONS:
            if proportions.name in arguments.proportions:
                print(timed(proportions, **options), flush=True)
    else:
        print(real(arguments.model, arguments.words, **options), flush=True)


def timed(proportions: Proportions, *, staleness: Sequence[int], rounds: int, steps: int) -> str:
    """Timed engines and learner, every staleness in every round."""
    config = load_config(str(QUICKSTART), ["algorithm.prompts_per_step=128", "replay.mode=none", "replay.max_trajectories=100000"])
    seen: dict[int, Rows] = {k: [] for k in (0, *staleness)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for number in range(rounds):
            for k, rows in seen.items():
                rows += asyncio.run(_timed_steps(config, proportions, max_staleness=k, steps=steps, seed=number))
    finally:
        ray.shutdown()
    return _table(f"Timed, {proportions.name}: seconds of the run that is stood for", seen, unit_s=proportions.scale)


async def _timed_steps(config: Config, proportions: Proportions, *, max_staleness: int, steps: int, seed: int) -> Rows:
    warm = max_staleness + 1  # until production is as far ahead as it may be
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, num_steps=warm + steps + max_staleness),
        algorithm=dataclasses.replace(config.algorithm, max_staleness=max_staleness),
    )
    rows: Rows = []

    async def after_step(step: int, metrics: dict[str, float]) -> None:
        rows.append(metrics)

    replay = ReplayActor.remote(config.replay, seed=1)
    fleet = TimedFleet(proportions, replay, samples=config.algorithm.samples_per_prompt)
    learner = TimedLearner(proportions, fleet)
    try:
        await Controller(
            config=config,
            ledger=PromptLedger(TimedPrompts(), seed=seed),  # type: ignore[arg-type]
            fleet=fleet,  # type: ignore[arg-type]
            replay=replay,
            learner=learner,  # type: ignore[arg-type]
            transport=learner,
            bad_rows=BadRows(max_fraction=1.0),
            after_step=after_step,
        ).run()
    finally:
        fleet.close()
        ray.kill(replay)
    assert max(row["staleness/max"] for row in rows) <= max_staleness
    return rows[warm : warm + steps]  # the last steps have nothing rolled out beside them


def real(model: Path, words: Sequence[str], *, staleness: Sequence[int], rounds: int, steps: int) -> str:
    """Whole runs of `rethinker train`, one after the other in each round."""
    seen: dict[int, Rows] = {k: [] for k in (0, *staleness)}
    for _ in range(rounds):
        for k, rows in seen.items():
            rows += _real_steps(model, words, max_staleness=k, steps=steps)
    return _table("Real engines, one core each: seconds", seen, unit_s=1.0)


def _real_steps(model: Path, words: Sequence[str], *, max_staleness: int, steps: int) -> Rows:
    warm = max_staleness + 1
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"model.path={model}", "coldstart.steps=0", "replay.mode=none", f"run.dir={folder}/run", "data.generate=", "data.test_path=",
            f"run.num_steps={warm + steps + max_staleness}", f"algorithm.max_staleness={max_staleness}", "checkpoint.every_steps=0",
            "cluster.dashboard=false", "rollout.threads=1", "learner.threads=1", *words,
        ]  # fmt: skip
        command = [sys.executable, "-m", "cluster", "train", str(QUICKSTART), *settings]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the run failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return read_metrics(Path(folder) / "run" / "metrics.jsonl")[warm : warm + steps]


def _table(title: str, seen: dict[int, Rows], *, unit_s: float) -> str:
    """Means over all rounds, with the ideal of the synchronous steps.

    Means and not medians: when rollouts are the bottleneck, long and short steps alternate (two steps' groups finish together), and what
    counts is how many steps are done in an hour.
    """

    def seconds(k: int, name: str) -> list[float]:
        return [row[name] / unit_s for row in seen[k]]

    rollout, update = (statistics.fmean(seconds(0, name)) for name in ("time/replay_wait_s", "time/update_s"))
    ideal = max(rollout, update)
    lines = [
        f"### {title}\n",
        f"Synchronous: rollout {rollout:.2f}, update {update:.2f}, weights {statistics.fmean(seconds(0, 'time/weight_sync_s')):.2f};"
        f" ideal step {ideal:.2f}\n",
        "| max_staleness | step, mean | shortest to longest | waits for rollouts | update | step / ideal | speed-up | staleness, mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    synchronous = statistics.fmean(seconds(0, "time/step_s"))
    for k, rows in seen.items():
        steps = seconds(k, "time/step_s")
        step = statistics.fmean(steps)
        waits, updates = (statistics.fmean(seconds(k, name)) for name in ("time/replay_wait_s", "time/update_s"))
        age = statistics.fmean(row["staleness/mean"] for row in rows)
        lines.append(
            f"| {k} | {step:.2f} | {min(steps):.2f} to {max(steps):.2f} | {waits:.2f} | {updates:.2f} | {step / ideal:.2f}"
            f" | {synchronous / step:.2f} | {age:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

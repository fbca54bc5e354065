"""Where a run saturates with 1 to 1,000 rollout actors, one replay actor and one learner group: a simulation in virtual time.

    python -m benchmarks.scale --plot docs/pictures/scale.png

Real: the controller with its admission and prompt ledger, whose CPU time is the driver's. Measured first, on this machine, and then
charged: what a call to an actor costs the driver in Ray, what an insert and a draw cost the replay actor. Timed: engines, learner and sync,
on paper proportions of a 72B run; nobody has run that yet. Three questions:

- paper: the recipe as it is: how many actors can one learner group use?
- no learner: updates take no time: what holds the rest up?
- wide: besides, prompts_per_step grows with the actors, so that every engine is full: what do controller and replay actor carry?
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.actor import RolloutReceipt
from actors.worker import RolloutRequest
from algorithms.rethinking import RethinkingCounts
from algorithms.schema import to_record_batch
from algorithms.types import Trajectory
from algorithms.wire import Parcel
from benchmarks.report import conditions
from benchmarks.simulated_roles import (
    GROUP,
    HEARTBEAT_S,
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    SLOTS,
    UPDATE_S_PER_TRAJECTORY,
    Costs,
    SimulatedFleet,
    SimulatedLearner,
    SimulatedReplay,
)
from benchmarks.timed_roles import TimedPrompts
from benchmarks.virtual_time import VirtualLoop, simulate
from cluster.bad_rows import BadRows
from cluster.controller import Controller
from cluster.ledger import PromptLedger
from conf.loading import load_config
from conf.schema import Config, ReplayConfig, ReplayMode
from replay.actor import ReplayActor
from tests.fakes import make_trajectory

ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SCENES = {"paper": (True, False), "no learner": (False, False), "wide": (False, True)}  # with the learner's time; batches that grow


def one(actors: int, *, learner: bool, wide: bool, costs: Costs, steps: int) -> dict[str, float]:
    """One run of the simulation.

    Args:
        actors: N.
        learner: whether updates and syncs take their time.
        wide: whether a step's prompts grow with the actors.
        costs: measured.
        steps: counted ones, after two others.

    Returns:
        Trajectories a second, the share of the time that controller, replay actor and learner are busy, seconds of driver CPU for a
        trajectory, and the ledger's bytes.
    """
    config = settings(actors, wide=wide, steps=steps + 2)
    loop = VirtualLoop()
    marks: list[tuple[float, float, float, int]] = []
    prompts = config.algorithm.prompts_per_step
    update_s = prompts * GROUP * UPDATE_S_PER_TRAJECTORY if learner else 0.0
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    ledger = PromptLedger(TimedPrompts(), seed=1)  # type: ignore[arg-type]
    for _ in range(2 * prompts):  # as many as are owed at max_staleness 1
        ledger.issue()
    ledger_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    async def run() -> None:
        replay = SimulatedReplay(costs, loop)
        fleet = SimulatedFleet(actors, replay, costs, loop)
        role = SimulatedLearner(update_s, fleet)

        async def after_step(step: int, metrics: dict[str, float]) -> None:
            marks.append((loop.time(), loop.cpu_s + loop.charged_s, replay.busy_s, fleet.finished))

        async def beats() -> None:
            while True:
                loop.charge(actors * costs.beat_s)
                await asyncio.sleep(HEARTBEAT_S)

        beating = asyncio.ensure_future(beats())
        await Controller(
            config=config,
            ledger=PromptLedger(TimedPrompts(), seed=1),  # type: ignore[arg-type]
            fleet=fleet,  # type: ignore[arg-type]
            replay=replay,  # type: ignore[arg-type]
            learner=role,  # type: ignore[arg-type]
            transport=role,  # type: ignore[arg-type]
            bad_rows=BadRows(max_fraction=1.0),
            after_step=after_step,
        ).run()
        beating.cancel()

    loop._began = time.process_time()
    simulate(run(), loop)
    (t0, cpu0, replay0, _), (t1, cpu1, replay1, _) = marks[1], marks[1 + steps]
    trajectories, seconds = steps * prompts * GROUP, t1 - t0
    return {
        "trajectories/s": trajectories / seconds,
        "controller": (cpu1 - cpu0) / seconds,
        "replay": (replay1 - replay0) / seconds,
        "learner": steps * update_s / seconds,
        "driver_us": (cpu1 - cpu0) / trajectories * 1e6,
        "ledger_bytes": float(ledger_bytes),
        "prompts_per_step": float(prompts),
    }


def settings(actors: int, *, wide: bool, steps: int) -> Config:
    """The 72B recipe, one version ahead."""
    prompts = max(1024, 2 * SLOTS * actors) if wide else 1024
    config = load_config("vl_rethinker_72b", ["algorithm.max_staleness=1", "rollout.prompts_per_call=16", "replay.mode=episode"])
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, num_steps=steps + 1, stages=[]),  # in the last step nothing is rolled out any more
        algorithm=dataclasses.replace(config.algorithm, prompts_per_step=prompts, batch_size=None),
        replay=dataclasses.replace(config.replay, timeout_s=1e9),
        learner=dataclasses.replace(config.learner, num_ranks=1),
    )


@ray.remote(num_cpus=0)
class Echo:
    """Answers at once, with what a rollout actor would."""

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """As RolloutActor's."""
        delivered = tuple(request.group_id for request in requests)
        return RolloutReceipt(delivered=delivered, bad=(), generated_tokens=0, rethinking=RethinkingCounts(), busy_s=0.0)

    async def health(self) -> dict[str, Any]:
        """As RolloutActor's."""
        return {"state": "healthy", "replica": 0, "version": 1, "pid": 1, "engine": "running"}


def measure() -> Costs:
    """Take the costs that the simulation charges."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=512 * 2**20)
    try:
        call_s, beat_s = asyncio.run(_driver_costs())
        return Costs(call_s, beat_s, *_replay_costs())
    finally:
        ray.shutdown()


async def _driver_costs(calls: int = 1500) -> tuple[float, float]:
    actor, prompts = Echo.remote(), TimedPrompts()
    requests = [RolloutRequest(group_id=f"p{i}@0", turn=i, prompt=prompts[i], seed=i) for i in range(16)]

    async def cpu_of(call: Any) -> float:
        await asyncio.gather(*(call() for _ in range(100)))
        begin = time.process_time()
        for _ in range(calls // 100):
            await asyncio.gather(*(call() for _ in range(100)))
        return (time.process_time() - begin) / calls

    async def roll() -> None:
        await actor.rollout.remote(requests)

    async def beat() -> None:
        await actor.health.remote()

    return await cpu_of(roll), await cpu_of(beat)


def _replay_costs() -> tuple[float, float, float]:
    """CPU seconds of the replay actor's process for a call, for a row in it, and for a drawn row; they don't depend on what else runs."""
    config = ReplayConfig(mode=ReplayMode.episode, max_trajectories=10**6, max_bytes=2**33, journal=False)
    replay = ReplayActor.remote(config, seed=1)
    process = psutil.Process(ray.get(replay.health.remote())["pid"])
    turn = 0

    def cpu_of(references: Callable[[], Any]) -> float:
        before = process.cpu_times()
        ray.get(references())
        after = process.cpu_times()
        return after.user + after.system - before.user - before.system

    def insert(groups: int, calls: int) -> float:
        nonlocal turn
        batches = []
        for _ in range(calls):
            turns = {f"p{turn + i}@0": turn + i for i in range(groups)}
            batches.append((ray.put(Parcel(to_record_batch(_rows(turn, groups)))), turns))
            turn += groups
        return cpu_of(lambda: [replay.insert.remote(rows, turns=turns) for rows, turns in batches]) / calls

    insert(1, 50)
    single, many = insert(1, 400), insert(16, 50)
    row_s = max(1e-7, (many - single) / (15 * GROUP))
    draws = (turn - 50) // 4

    def draw() -> Any:
        drawn = replay.sample.options(num_returns=2).remote(num_groups=draws, batch_size=draws * GROUP, policy_version=0)
        return drawn[0]

    ray.get(draw())
    draw_s = cpu_of(lambda: [draw(), draw(), draw()]) / (3 * draws * GROUP)
    ray.kill(replay)
    return max(1e-7, single - GROUP * row_s), row_s, draw_s


def _rows(first: int, groups: int) -> list[Trajectory]:
    """Whole groups of the size that the paper's are, half of each right."""
    return [
        make_trajectory(
            prompt_id=f"p{first + group}", index=index, reward=float(index % 2), advantage=index % 2 - 0.5, correct=bool(index % 2),
            prompt_tokens=PROMPT_TOKENS, response_tokens=RESPONSE_TOKENS,
        )
        for group in range(groups)
        for index in range(GROUP)
    ]  # fmt: skip


def main() -> None:
    """Measure, simulate, print Markdown and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", nargs="*", type=int, default=list(ACTORS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--scenes", nargs="*", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--costs", nargs=5, type=float, metavar="US", help="measured before, in the printed order")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.plot and len(arguments.scenes) < len(SCENES):
        parser.error("the plot is over all scenes")
    print(conditions("python -m benchmarks.scale " + " ".join(sys.argv[1:])))
    costs = measure() if arguments.costs is None else Costs(*(value * 1e-6 for value in arguments.costs))
    print(
        f"\nCharged: {costs.call_s * 1e6:.0f} us of driver CPU a rollout call, {costs.beat_s * 1e6:.0f} us a heartbeat; replay actor"
        f" {costs.insert_s * 1e6:.0f} us an insert, {costs.row_s * 1e6:.0f} us a row in it, {costs.draw_s * 1e6:.1f} us a drawn row.\n",
        flush=True,
    )
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name in arguments.scenes:
        learner, wide = SCENES[name]
        rows = found[name] = {}
        print(f"### {name}\n\n| actors | prompts a step | trajectories/s | learner | replay | driver | driver us/trajectory | ledger |")
        print("|---|---|---|---|---|---|---|---|")
        for actors in arguments.actors:
            row = rows[actors] = one(actors, learner=learner, wide=wide, costs=costs, steps=arguments.steps)
            print(
                f"| {actors} | {row['prompts_per_step']:.0f} | {row['trajectories/s']:.1f} | {row['learner']:.0%} | {row['replay']:.1%} |"
                f" {row['controller']:.1%} | {row['driver_us']:.0f} | {row['ledger_bytes'] / 2**20:.2f} MiB |",
                flush=True,
            )
        print()
    if arguments.plot:
        _plot(found, arguments.plot)


def _plot(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, rows in found.items():
        left.loglog(list(rows), [row["trajectories/s"] for row in rows.values()], marker="o", label=name)
    one_actor = found["wide"][min(found["wide"])]["trajectories/s"] if "wide" in found else 0.0
    counts = sorted(found["wide"])
    left.loglog(counts, [one_actor * n / counts[0] for n in counts], color="grey", linestyle=":", label="as many as the engines make")
    for role, style in (("controller", "-"), ("replay", "--")):
        right.semilogx(counts, [100 * found["wide"][n][role] for n in counts], style, marker="o", label=f"{role}, wide")
    right.semilogx(list(found["paper"]), [100 * row["learner"] for row in found["paper"].values()], ":", marker="o", label="learner, paper")
    left.set(xlabel="rollout actors", ylabel="trajectories a second", title="What a run makes")
    right.set(xlabel="rollout actors", ylabel="% busy", title="Who is at the limit", ylim=(0, 105))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

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
import random
import sys
import time
import tracemalloc
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.actor import RolloutReceipt
from actors.worker import RolloutRequest
from algorithms.rethinking import RethinkingCounts
from algorithms.schema import to_record_batch
from benchmarks.report import conditions
from benchmarks.timed_roles import TimedPrompts
from benchmarks.virtual_time import VirtualLoop, simulate
from cluster.bad_rows import BadRows
from cluster.controller import Controller
from cluster.ledger import PromptLedger
from cluster.replica import BusyClock
from cluster.transport import SyncReport
from conf.loading import load_config
from conf.schema import Config, ReplayConfig, ReplayMode
from replay.actor import ReplayActor
from tests.fakes import make_trajectory

ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
GROUP = 8  # samples of a prompt
SLOTS = 256 // GROUP  # groups that an engine samples at once
PROMPT_TOKENS, RESPONSE_TOKENS = 1500, 500  # a picture of a thousand tokens; the paper's mean response
ITERATION_BASE_S, ITERATION_SHARE_S = 0.025, 0.00005  # of a 72B engine on 8 GPUs: memory-bound, a little more for each sequence
SPREAD = 0.6  # of the logarithm of the response lengths
MAX_TOKENS = 2048
UPDATE_S_PER_TRAJECTORY = 0.09  # 6 x 72e9 x 2,000 tokens x 4/3 (checkpointing) on 32 GPUs of 4e14 useful FLOP/s
SYNC_S = 8.0  # 144 GB by broadcast
HEARTBEAT_S = 5.0
SCENES = {"paper": (True, False), "no learner": (False, False), "wide": (False, True)}  # with the learner's time; batches that grow


@dataclass(frozen=True)
class Costs:
    """Measured on this machine, seconds."""

    call_s: float  # of driver CPU for one rollout call and its receipt, Ray included
    beat_s: float  # the same for a heartbeat
    insert_s: float  # of the replay actor for one insert call of a group, besides its rows
    row_s: float  # of the replay actor for one more row in a call
    draw_s: float  # of the replay actor for one drawn row


class SimulatedReplay:
    """One server: inserts and draws take their measured time, one after the other; a draw waits for its groups."""

    def __init__(self, costs: Costs, loop: VirtualLoop) -> None:
        self._costs, self._loop = costs, loop
        self._arrived = 0
        self._free_at = 0.0
        self.busy_s = 0.0
        self._changed = asyncio.Event()

    async def insert(self, rows: int) -> None:
        """A group arrives."""
        await self._serve(self._costs.insert_s + rows * self._costs.row_s)
        self._arrived += 1
        self._changed.set()

    @property
    def sample(self) -> SimulatedReplay:
        """The method whose handle is asked for options."""
        return self

    def options(self, *, num_returns: int) -> SimulatedReplay:
        """As Ray's."""
        return self

    def remote(self, **request: Any) -> tuple[Coroutine[Any, Any, dict[str, float]], str]:
        """The draw, and the rank's rows."""
        return self._draw(request["num_groups"], request["batch_size"] * request["num_updates"]), "rows"

    async def _draw(self, groups: int, rows: int) -> dict[str, float]:
        while self._arrived < groups:
            self._changed.clear()
            await self._changed.wait()
        self._arrived -= groups
        await self._serve(rows * self._costs.draw_s)
        return {}

    async def _serve(self, seconds: float) -> None:
        now = self._loop.time()
        self._free_at = max(now, self._free_at) + seconds
        self.busy_s += seconds
        await asyncio.sleep(self._free_at - now)


class SimulatedFleet:
    """Engines that take time: a group is done when the longest of its responses is, and waits while all slots are taken."""

    def __init__(self, actors: int, replay: SimulatedReplay, costs: Costs, loop: VirtualLoop) -> None:
        self._replay, self._costs, self._loop = replay, costs, loop
        self.busy = BusyClock()
        self.absences, self.replicas = 0, [None] * actors
        self._slots = [asyncio.Semaphore(SLOTS) for _ in range(actors)]
        self._running = np.zeros(actors, dtype=np.int64)  # prompts handed to each and not answered
        self.finished = 0

    async def rollout(self, requests: list[RolloutRequest]) -> RolloutReceipt:
        """See RolloutFleet.rollout."""
        begin = time.process_time()
        number = int(self._running.argmin())
        self._running[number] += len(requests)
        self._loop.excuse(time.process_time() - begin)
        self._loop.charge(self._costs.call_s)
        await asyncio.gather(*(self._roll_out(number, request) for request in requests))
        self._running[number] -= len(requests)
        delivered = tuple(request.group_id for request in requests)
        return RolloutReceipt(delivered=delivered, bad=(), generated_tokens=0, rethinking=RethinkingCounts(), busy_s=0.0)

    async def _roll_out(self, number: int, request: RolloutRequest) -> None:
        begin = time.process_time()
        rng = random.Random(request.seed)
        tokens = max(min(MAX_TOKENS, rng.lognormvariate(np.log(RESPONSE_TOKENS) - SPREAD**2 / 2, SPREAD)) for _ in range(GROUP))
        load = min(SLOTS, int(self._running[number])) * GROUP
        self._loop.excuse(time.process_time() - begin)
        async with self._slots[number]:
            await asyncio.sleep(tokens * (ITERATION_BASE_S + load * ITERATION_SHARE_S))
        await self._replay.insert(GROUP)
        self.finished += GROUP


class SimulatedLearner:
    """Updates and weight syncs that take time."""

    def __init__(self, update_s: float, fleet: SimulatedFleet) -> None:
        self._update_s, self._fleet = update_s, fleet

    async def update(self, shards: Any, *, step: int) -> dict[str, float]:
        """See LearnerGroup.update."""
        await asyncio.sleep(self._update_s)
        return {}

    async def deliver(self, version: int) -> SyncReport:
        """See WeightTransport.deliver."""
        await asyncio.sleep(SYNC_S if self._update_s else 0.0)
        return SyncReport(paused_s=0.0, sent_bytes=0, num_replicas=len(self._fleet.replicas))


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
    """The replay actor's own time for a call, for a row, and for a drawn row."""
    config = ReplayConfig(mode=ReplayMode.episode, max_trajectories=10**6, max_bytes=2**33, journal=False)
    replay = ReplayActor.remote(config, seed=1)
    ray.get(replay.stats.remote())
    turn = 0

    def insert(groups: int, calls: int) -> float:
        nonlocal turn
        batches = []
        for _ in range(calls):
            names = [f"p{turn + i}" for i in range(groups)]
            rows = to_record_batch(
                make_trajectory(prompt_id=name, index=i, reward=float(i % 2), advantage=i % 2 - 0.5, correct=bool(i % 2),
                                prompt_tokens=PROMPT_TOKENS, response_tokens=RESPONSE_TOKENS)
                for name in names for i in range(GROUP)
            )  # fmt: skip
            batches.append((ray.put(rows), {f"{name}@0": turn + i for i, name in enumerate(names)}))
            turn += groups
        begin = time.perf_counter()
        ray.get([replay.insert.remote(rows, turns=turns) for rows, turns in batches])
        return (time.perf_counter() - begin) / calls

    insert(1, 20)
    single, many = insert(1, 200), insert(16, 30)
    row_s = max(1e-7, (many - single) / (15 * GROUP))
    ray.get(replay.sample.remote(num_groups=100, batch_size=800, num_updates=1, policy_version=0))
    begin = time.perf_counter()
    ray.get(replay.sample.remote(num_groups=512, batch_size=512, num_updates=8, policy_version=0)[0])
    draw_s = (time.perf_counter() - begin) / 4096
    ray.kill(replay)
    return max(1e-7, single - GROUP * row_s), row_s, draw_s


def main() -> None:
    """Measure, simulate, print Markdown and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", nargs="*", type=int, default=list(ACTORS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    print(conditions("python -m benchmarks.scale " + " ".join(sys.argv[1:])))
    costs = measure()
    print(
        f"\nCharged: {costs.call_s * 1e6:.0f} us of driver CPU a rollout call, {costs.beat_s * 1e6:.0f} us a heartbeat; replay actor"
        f" {costs.insert_s * 1e6:.0f} us an insert, {costs.row_s * 1e6:.0f} us a row in it, {costs.draw_s * 1e6:.1f} us a drawn row.\n",
        flush=True,
    )
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, (learner, wide) in SCENES.items():
        rows = found[name] = {}
        print(
            f"### {name}\n\n| actors | prompts a step | trajectories/s | learner | replay | driver | driver us/trajectory | ledger |"
        )
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

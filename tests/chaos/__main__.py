"""`make chaos`: faults drawn with a seed, injected one after another into one long run, and what that cost.

    python -m tests.chaos --seed 1 --faults 20 --folder runs/chaos --only "replay actor"

A folder that holds a run is gone on with, at the fault at which it stopped, so that a long series can be done in slices; the table is
over all of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import faults, rollout_faults
from tests.chaos.accounting import Acknowledged, Verdict, judge
from tests.chaos.cluster import PrivateCluster
from tests.chaos.disk import can_mount
from tests.chaos.faults import FAULTS, STEPS_AFTER, Fault
from tests.chaos.link import can_link
from tests.chaos.report import table
from tests.chaos.run import PROMPTS_PER_STEP, ChaosRun

TABLES = (faults, rollout_faults)  # each enters its faults when it is imported


def main(words: Sequence[str] | None = None) -> int:
    """Run a series of faults.

    Args:
        words: of the command line; None: the process's.

    Returns:
        0 when every fault was got over and nothing was lost or doubled.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=len(FAULTS), help="how many; by default each one of the table once")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no fault after so many")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--only", nargs="*", default=[], help="rows of the table that contain one of these words")
    arguments = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is ended, and what was acknowledged kept
    chosen = [fault for name, fault in FAULTS.items() if not arguments.only or any(word in name for word in arguments.only)]
    for name, why in impossible_here().items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    chosen = [fault for fault in chosen if fault.name not in impossible_here()]
    series = draw(chosen, count=arguments.faults, seed=arguments.seed)[done(arguments.folder) :]
    verdict = inject(series, folder=arguments.folder, seed=arguments.seed, minutes=arguments.minutes)
    rows = [json.loads(line) for line in (arguments.folder / "faults.jsonl").read_text().splitlines()]
    print(table(rows, verdict))
    return 0 if verdict.clean and all(row["recovered"] for row in rows) else 1


@functools.cache
def impossible_here() -> dict[str, str]:
    """Faults that can't be injected on this machine, and why."""
    reasons = {}
    if not can_mount():
        reasons["disk full on the run folder"] = "a disk that is small enough to be filled can't be mounted here (only by root)"
    if not can_link():
        reasons["node with a rollout actor: network cut"] = "a network namespace can't be made here (only by root, with iproute2)"
    assert set(reasons) <= set(FAULTS)
    return reasons


def done(folder: Path) -> int:
    """How many faults of its series a folder has behind it."""
    log = folder / "faults.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def draw(chosen: Sequence[Fault], *, count: int, seed: int) -> list[Fault]:
    """Rounds: each has every fault once, in an order of its own, and then the cheap ones again, so that any part covers the table.

    Args:
        chosen: rows of the table.
        count: of faults.
        seed: of the order.

    Returns:
        [count] faults; a longer series begins with the shorter ones of its seed.
    """
    rng = random.Random(seed)
    again = [fault for fault in chosen for _ in range(fault.times - 1)]
    series: list[Fault] = []
    while chosen and len(series) < count:
        series += [*rng.sample(chosen, len(chosen)), *rng.sample(again, len(again))]
    return series[:count]


def inject(series: Sequence[Fault], *, folder: Path, seed: int, minutes: float = 60.0) -> Verdict:
    """Hurt one run again and again, and see it get over each fault before the next.

    Args:
        series: of faults.
        folder: of the run; what it holds is gone on with.
        seed: of what each fault hits.
        minutes: after which no further fault begins.

    Returns:
        What was lost and doubled over the whole run.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    end, rng = time.monotonic() + 60 * minutes, random.Random(f"{seed}/hits/{done(folder)}")
    cluster = PrivateCluster(num_cpus=3)  # a learner rank and two rollout actors: a third one has to go to another node
    run = ChaosRun(folder, cluster)
    try:
        cluster.start()
        begin_or_go_on(run)
        for fault in series:
            if time.monotonic() > end:
                break
            row = suffer(run, fault, rng)
            with (folder / "faults.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            if not row["recovered"]:
                break
        run.stop()
    finally:
        run.save()
        cluster.close()
        run.close()
    return judge(folder / "kept" / "run" if run.disk.limited else run.run_folder, run.acknowledged, prompts_per_step=PROMPTS_PER_STEP)


def begin_or_go_on(run: ChaosRun) -> None:
    """Start the run, or go on with the one of an earlier series."""
    if run.checkpoint_step:
        run.resume()
    else:
        run.acknowledged = Acknowledged()  # of a run that didn't come to a checkpoint nothing is gone on with
        run.start()


def suffer(run: ChaosRun, fault: Fault, rng: random.Random) -> dict[str, object]:
    """Inject one fault and wait until the run is whole and has gone on.

    Args:
        run: to hurt.
        fault: to inject.
        rng: chooses what is hit, and when.

    Returns:
        The fault's row, JSON-able.
    """
    time.sleep(rng.uniform(0.0, 2.0))  # so that faults fall into all parts of a step
    begin, step = time.monotonic(), run.steps_done
    row: dict[str, object] = {"fault": fault.name, "step": step, "recovered": False, "seconds": None, "hit": ""}
    try:
        injection = fault.inject(run, rng)
        row["hit"], begin = injection.hit, injection.hit_at or begin
        if fault.ends_driver:
            run.resume_driver()
            step = row["step"] = run.checkpoint_step  # from here on steps are made again
        run.wait(lambda: injection.whole() and run.steps_done >= step + STEPS_AFTER, fault.timeout_s, f"recovery from {fault.name}")
    except (TimeoutError, RuntimeError, AssertionError) as failure:
        row["failure"] = str(failure)[-2000:]
        return row
    return row | {"recovered": True, "seconds": round(time.monotonic() - begin, 1)}


if __name__ == "__main__":
    sys.exit(main())

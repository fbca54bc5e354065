"""The faults of the table: what is done to a run, and how one sees that it got over it.

A fault is a function that hurts a ChaosRun and returns what has to be true for the run to be whole again. Add one with ``@fault``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tests.chaos.run import ChaosRun, kill

STEPS_AFTER = 2  # the second step after a fault was begun and ended without what the fault has left lying about


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A fault that was just injected."""

    hit: str  # what it hit, for the log
    whole: Callable[[], bool]  # whether what was hit is there again
    hit_at: float | None = None  # on the monotonic clock; None: when the injection began


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table."""

    name: str
    inject: Callable[[ChaosRun, random.Random], Injection]
    times: int  # in a round of the series
    timeout_s: float
    ends_driver: bool = False


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, times: int = 1, timeout_s: float = 240.0, ends_driver: bool = False
) -> Callable[[Callable[[ChaosRun, random.Random], Injection]], Callable[[ChaosRun, random.Random], Injection]]:
    """Enter a function into the table.

    Args:
        name: of the row.
        times: in a round of the series: more for what costs seconds than for what costs a minute.
        timeout_s: for the run to get over it.
        ends_driver: a new driver has to be started, which the harness does.
    """

    def enter(inject: Callable[[ChaosRun, random.Random], Injection]) -> Callable[[ChaosRun, random.Random], Injection]:
        FAULTS[name] = Fault(name=name, inject=inject, times=times, timeout_s=timeout_s, ends_driver=ends_driver)
        return inject

    return enter


def killed(run: ChaosRun, role: str, rng: random.Random) -> Injection:
    """Kill one process of a role; whole when as many are there as before, without it.

    Args:
        run: to hurt.
        role: of run.ROLES.
        rng: chooses.

    Returns:
        The injection.
    """
    before = run.processes(role)
    victim = rng.choice(before)
    kill(victim)

    def whole() -> bool:
        now = run.processes(role)
        return len(now) >= len(before) and victim.pid not in {process.pid for process in now}

    return Injection(hit=f"{role} {victim.pid}", whole=whole)


@fault("replay actor: kill -9", times=3)
def replay_actor(run: ChaosRun, rng: random.Random) -> Injection:
    """Its successor reads the journal."""
    return killed(run, "replay", rng)


@fault("learner rank: kill -9", times=3)
def learner_rank(run: ChaosRun, rng: random.Random) -> Injection:
    """The group is rebuilt and takes the steps since the checkpoint again."""
    return killed(run, "learner", rng)


@fault("control store: kill -9 and started again", times=3)
def control_store(run: ChaosRun, rng: random.Random) -> Injection:
    """Actors live on without it; whoever runs the head starts it again with its own command line."""
    (store,) = run.processes("gcs")
    respawned = run.cluster.respawn(store, after_s=rng.uniform(0.5, 5.0))
    return Injection(hit=f"gcs_server {store.pid}", whole=respawned.is_running)


@fault("disk full on the run folder", times=3)
def disk_full(run: ChaosRun, rng: random.Random) -> Injection:
    """Nothing is written for some seconds; whole when a newer checkpoint than before has been."""
    if not run.disk.limited:
        raise RuntimeError("only root can mount a disk that is small enough to be filled")
    before = run.checkpoint_step
    run.disk.fill()
    try:
        time.sleep(rng.uniform(4.0, 12.0))
    finally:
        run.disk.free()
    return Injection(hit=f"after step {run.steps_done}", whole=lambda: run.checkpoint_step > before)


@fault("driver: kill -9, run.resume=true", timeout_s=420, ends_driver=True)
def driver(run: ChaosRun, rng: random.Random) -> Injection:
    """Nothing of the dead one is left when the new one starts; whole when it has restored a checkpoint."""
    roles = ("replay", "learner", "rollout", "engine", "grader")
    before = [process for role in roles for process in run.processes(role)]
    kill(psutil.Process(run.driver_pid))
    _, alive = psutil.wait_procs(before, timeout=30)
    if alive:
        raise AssertionError(f"left behind by a dead driver: {[(process.pid, process.cmdline()[:3]) for process in alive]}")
    return Injection(hit=f"driver {run.driver_pid}", whole=lambda: all(run.processes(role) for role in roles))

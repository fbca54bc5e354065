"""The faults of the rollout side: actors, their engines and graders, and the node that they are on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from tests.chaos.faults import Injection, fault, killed
from tests.chaos.link import Link
from tests.chaos.run import ROOT, ChaosRun, kill

COMMAND_TIMEOUT_S = 90
JOINED, OUT_OF_SERVICE, NOBODY = " joined", "is out of service", "no rollout actor is in service"  # as the run's log says it


def replaced(
    run: ChaosRun, before: Sequence[psutil.Process], gone: Sequence[psutil.Process], what: str, role: str = "rollout"
) -> Injection:
    """Whole when as many of a role are there as before, without those that were hit, and a successor of each serves.

    Args:
        run: that was hurt.
        before: processes of the role before.
        gone: those that were hit.
        what: was hit, for the log.
        role: of run.ROLES.

    Returns:
        The injection.
    """
    joined = run.said(JOINED)

    def whole() -> bool:
        now = run.processes(role)
        others = len(now) >= len(before) and not {process.pid for process in now} & {process.pid for process in gone}
        return others and run.said(JOINED) >= joined + len(gone)

    return Injection(hit=what, whole=whole)


@fault("rollout actor: kill -9")
def rollout_actor(run: ChaosRun, rng: random.Random) -> Injection:
    """Its prompts are issued again once; its successor serves after a weight sync."""
    before = run.processes("rollout")
    victim = rng.choice(before)
    kill(victim)
    return replaced(run, before, [victim], f"rollout {victim.pid}")


@fault("engine process: kill -9")
def engine(run: ChaosRun, rng: random.Random) -> Injection:
    """Its actor lives, and is replaced all the same."""
    before = run.processes("engine")
    victim = rng.choice(before)
    kill(victim)
    return replaced(run, before, [victim], f"engine {victim.pid}", role="engine")


@fault("engine process: SIGSTOP")
def stopped_engine(run: ChaosRun, rng: random.Random) -> Injection:
    """Nobody is dead, and nothing comes: suspected after missed heartbeats, then replaced."""
    before = run.processes("engine")
    victim = rng.choice(before)
    victim.send_signal(signal.SIGSTOP)
    return replaced(run, before, [victim], f"engine {victim.pid} stopped", role="engine")


@fault("rollout actor: SIGSTOP")
def stopped_actor(run: ChaosRun, rng: random.Random) -> Injection:
    """The same for the actor's own process, which then can't even say how it is."""
    before = run.processes("rollout")
    victim = rng.choice(before)
    victim.send_signal(signal.SIGSTOP)
    return replaced(run, before, [victim], f"rollout {victim.pid} stopped")


@fault("all rollout actors at once: kill -9")
def all_rollout_actors(run: ChaosRun, rng: random.Random) -> Injection:
    """Training goes on with what replay has, waits, says so, and continues."""
    before, said = run.processes("rollout"), run.said(NOBODY)
    for victim in before:
        kill(victim)
    injection = replaced(run, before, before, f"rollouts {[victim.pid for victim in before]}")
    return dataclasses.replace(injection, whole=lambda: run.said(NOBODY) > said and injection.whole())


@fault("grader process: kill -9", times=3)
def grader(run: ChaosRun, rng: random.Random) -> Injection:
    """Its answer is graded again by its successor, or gets 0 with a reason."""
    return killed(run, "grader", rng)


@fault("node with a rollout actor: gone", timeout_s=360)
def node(run: ChaosRun, rng: random.Random) -> Injection:
    """A second raylet is killed, and the third rollout actor with it; the run goes on and the actor is dropped when nobody wants it."""
    before = run.processes("rollout")
    raylet = run.cluster.add_node(num_cpus=1)
    grow_by_one(run, before)
    hit_at = time.monotonic()
    kill(raylet)
    run.wait(lambda: len(run.processes("rollout")) == len(before), 60, "the node's actor to be gone")
    scale(run, len(before))
    return dataclasses.replace(replaced(run, before, [], f"node of raylet {raylet.pid}"), hit_at=hit_at)


@fault("node with a rollout actor: network cut", timeout_s=360)
def cut_off_node(run: ChaosRun, rng: random.Random) -> Injection:
    """The second raylet lives on behind a dead cable, and so does its actor; what it still delivers afterwards is not counted twice."""
    before = run.processes("rollout")
    with contextlib.closing(Link(f"rc{os.getpid()}")) as link:
        raylet = run.cluster.add_node(num_cpus=1, link=link)
        grow_by_one(run, before)
        lost, step = run.said(OUT_OF_SERVICE), run.steps_done
        hit_at = time.monotonic()
        link.cut()
        run.wait(lambda: run.said(OUT_OF_SERVICE) > lost, 90, "the actor behind the cable to be given up")
        run.wait(lambda: run.steps_done > step, 120, "a step without the second node")
        scale(run, len(before))
        link.join()  # the actor may find its voice again, and nobody listens
        run.wait(lambda: len(run.processes("rollout")) == len(before), 90, "the actor that was given up to be gone")
        with contextlib.suppress(ProcessLookupError):  # Ray may have told it that its node was taken for dead, and it has ended itself
            kill(raylet)
    return dataclasses.replace(replaced(run, before, [], f"node of raylet {raylet.pid}"), hit_at=hit_at)


def grow_by_one(run: ChaosRun, before: Sequence[psutil.Process]) -> None:
    """One rollout actor more, on the second node since the head is full, and a step with it.

    Args:
        run: that is asked.
        before: its rollout actors.
    """
    joined = run.said(JOINED)
    scale(run, len(before) + 1)
    run.wait(lambda: len(run.processes("engine")) > len(before), 180, "a rollout actor on the second node")
    run.wait(lambda: run.said(JOINED) > joined, 120, "the second node's rollout actor to serve")
    step = run.steps_done
    run.wait(lambda: run.steps_done > step, 120, "a step with the second node")


def scale(run: ChaosRun, rollouts: int) -> None:
    """Ask the run for another number of rollout actors, as an operator does.

    Args:
        run: that is asked.
        rollouts: wanted.
    """
    command = [sys.executable, "-m", "cluster", "scale", str(run.run_folder), "--rollouts", str(rollouts)]
    done = subprocess.run(command, cwd=ROOT, env=run.cluster.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(done.stderr)

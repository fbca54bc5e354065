"""An interrupted command ends by itself, or is ended; either way without leaving a process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster import ending

ROOT = Path(__file__).parents[2]
# A worker in a session of its own, whose parent is gone, and a block that doesn't let itself be interrupted
HANGS = """
import subprocess, sys, time
from cluster import ending
ending.PATIENCE_S = 0.5
with ending.interruptible(), ending.local_processes():
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '100'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    print(subprocess.check_output([sys.executable, "-c", orphan], text=True, start_new_session=True).strip(), flush=True)
    while {hangs}:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


def start(hangs: bool) -> tuple[subprocess.Popen[str], psutil.Process]:
    """The command, and its worker."""
    program = subprocess.Popen(
        [sys.executable, "-c", HANGS.format(hangs=hangs)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    return program, psutil.Process(int(program.stdout.readline()))


def is_gone(process: psutil.Process) -> bool:
    gone, _ = psutil.wait_procs([process], timeout=5)
    return bool(gone) or process.status() == psutil.STATUS_ZOMBIE


def test_a_command_that_hangs_is_ended_by_force_with_its_processes() -> None:
    program, worker = start(hangs=True)
    program.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, said = program.communicate(timeout=30)
    assert time.monotonic() - begin < 8  # 0.5 s and what a loaded machine takes; without force it were for ever
    assert program.returncode == ending.INTERRUPTED_EXIT_CODE
    assert "ended by force" in said
    assert is_gone(worker)


def test_workers_go_with_the_block_that_started_them() -> None:
    program, worker = start(hangs=False)
    assert program.wait(30) == 0
    assert is_gone(worker)


def test_the_first_signal_cancels_and_what_it_undoes_is_awaited() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            seen.append("undone")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ending.run(work())
    assert seen == ["undone"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_waits_for_nothing() -> None:
    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100):  # a step of foreign code that never comes back to the loop
                time.sleep(0.3)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ending.run(work())
    assert time.monotonic() - begin < 8


@pytest.mark.parametrize("grace", [False, True])
def test_sigterm_cancels_or_is_told_to_whoever_knows_better(grace: bool) -> None:
    told: list[bool] = []

    async def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        while not told:
            await asyncio.sleep(0.001)
        return "ended by itself"

    def on_sigterm(cancel: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(told.append, True)

    if grace:
        assert ending.run(work(), on_sigterm=on_sigterm) == "ended by itself"
        told.clear()
        with pytest.raises(KeyboardInterrupt):
            ending.run(work(), on_sigterm=lambda cancel: cancel())
    else:
        with pytest.raises(KeyboardInterrupt):
            ending.run(work())


def test_without_a_signal_it_is_asyncio_run() -> None:
    async def work() -> int:
        return 7

    assert ending.run(work()) == 7

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        ending.run(cancels_itself())


def test_a_block_that_is_not_interrupted_leaves_signals_as_they_were() -> None:
    before, woken = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with ending.interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(woken) == -1

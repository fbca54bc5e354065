"""The operating-system processes of one engine.

Owns which processes are vLLM's and that they end. Must not know requests or weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def child_processes() -> set[psutil.Process]:
    """All living descendants of this process."""
    return set(psutil.Process().children(recursive=True))


def vllm_processes_since(before: set[psutil.Process]) -> list[psutil.Process]:
    """The processes that vLLM started since then; Python's resource tracker and other people's children are left alone.

    Args:
        before: child_processes before vLLM was started.

    Returns:
        Those that carry vLLM's title.
    """
    found = []
    for child in child_processes() - before:
        try:
            if child.name().startswith("VLLM"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def condition_of(processes: Iterable[psutil.Process]) -> str:
    """How processes are, by what the kernel says; one that computes for a long time runs.

    Args:
        processes: of one engine.

    Returns:
        "running", "stopped" (by a signal, it may be continued) or "gone", whichever is the worst of them.
    """
    condition = "running"
    for process in processes:
        try:
            status = process.status()
        except psutil.NoSuchProcess:
            return "gone"
        if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return "gone"
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            condition = "stopped"
    return condition


def end_processes(processes: Iterable[psutil.Process], *, grace_s: float) -> None:
    """Wait for processes to end, then kill those that have not.

    Args:
        processes: some may be gone already.
        grace_s: how long to wait.
    """
    _, alive = psutil.wait_procs(list(processes), timeout=grace_s)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=grace_s)

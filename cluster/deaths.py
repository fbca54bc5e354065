"""What is left of an actor that died: the cause that Ray tells and the last lines of its log, on whatever node it ran.

Owns the way to both. Must not know what is done about a death (cluster.supervision).
"""

from __future__ import annotations

import logging
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.health import DeathReport
from cluster.waiting import answer_within

logger = logging.getLogger(__name__)

LOG_TIMEOUT_S = 10.0  # for a task on the dead actor's node; the node may be gone, too
_EXIT = re.compile(r"Worker exit type: (\w+) Worker exit detail: (.*?)(?: Some common causes|$)", re.DOTALL)
_DEAD = re.compile(r"^The actor is dead because (.*)$|^(?:The )?(?:actor|Actor).*node.*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where an actor ran, as it said itself when it started."""

    node_id: str
    address: str
    pid: int
    worker_id: str


def cause_of(error: BaseException) -> str:
    """Why an actor is gone, in a line.

    Args:
        error: of a call to it.

    Returns:
        Ray's exit type and detail where the process died, else the first line of the innermost message.
    """
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip()
    if isinstance(error, RayActorError):
        exit_ = _EXIT.search(text)
        if exit_ is not None:
            return f"its process ended ({exit_[1]}: {' '.join(exit_[2].split()).rstrip('.')})"
        dead = _DEAD.search(text)
        if dead is not None:
            return " ".join((dead[1] or dead[0]).split())
    return (text.splitlines() or [repr(cause)])[0]


async def report_death(role: str, cause: str, place: Whereabouts | None, *, log_lines: int) -> DeathReport:
    """Put together what is known of a death.

    Args:
        role: who died.
        cause: in a line.
        place: where it ran; None: it never said.
        log_lines: of its own log to quote.

    Returns:
        The report; without log lines where they can't be read in time.
    """
    if place is None:
        return DeathReport(role=role, cause=cause)
    lines: list[str] = []
    if log_lines:
        there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
        reading = _last_lines.options(scheduling_strategy=there).remote(place.worker_id, place.pid, log_lines)
        try:
            lines = await answer_within(reading, LOG_TIMEOUT_S, f"the node of {role} to read its log")
        except Exception as error:  # the node is gone or busy: a report without last words is still a report
            logger.info("the last log lines of %s can't be read: %s", role, (str(error).splitlines() or [repr(error)])[0])
    return DeathReport(role=role, cause=cause, node=place.address, pid=place.pid, last_log_lines=tuple(lines))


@ray.remote(num_cpus=0, max_retries=0)
def _last_lines(worker_id: str, pid: int, count: int) -> list[str]:
    return last_lines(Path(ray._private.worker._global_node.get_logs_dir_path()), worker_id, pid, count)


def last_lines(logs: Path, worker_id: str, pid: int, count: int) -> list[str]:
    """The end of what a worker printed.

    Args:
        logs: Ray's folder of logs on the worker's node.
        worker_id: of the worker, hexadecimal.
        pid: of the worker.
        count: lines.

    Returns:
        The last lines of whichever of its two streams was written last; empty: it printed nothing.
    """
    written = [path for path in logs.glob(f"worker-{worker_id}-*-{pid}.*") if path.suffix in (".out", ".err") and path.stat().st_size]
    if not written:
        return []
    newest = max(written, key=lambda path: path.stat().st_mtime)
    with newest.open(errors="replace") as lines:
        kept = deque((line.rstrip() for line in lines if line.strip() and not line.startswith(":")), maxlen=count)
    return list(kept)

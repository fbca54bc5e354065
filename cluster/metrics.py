"""Where step metrics go: any number of sinks. Here are metrics.jsonl, TensorBoard and Ray's own metrics, with them the dashboard."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ray.util.metrics import Gauge

from cluster.health import RoleHealth, RoleState

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

logger = logging.getLogger(__name__)


class MetricSink(Protocol):
    """One place that takes a run's step metrics."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Take the metrics of a step, which is counted from 1."""

    def close(self) -> None:
        """Bring what was taken to its place."""


class JsonLines:
    """One object a line, in a file; what a full disk has no room for waits in memory for the next step.

    Args:
        path: of the file, appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._size = os.fstat(self._file).st_size
        self._waiting: list[bytes] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line, and those that wait before it."""
        self._waiting.append((json.dumps({"step": step, **metrics}) + "\n").encode())
        if (reason := self.flush()) is not None and len(self._waiting) == 1:
            logger.warning("%s can't be written, its lines are kept until there is room: %s", self.path, reason)

    def flush(self) -> str | None:
        """Write what waits.

        Returns:
            None; or why it can't be written.
        """
        while self._waiting:
            try:
                if os.write(self._file, self._waiting[0]) < len(self._waiting[0]):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self._file, self._size)  # half a line is none
                return str(error)
            self._size += len(self._waiting.pop(0))
        return None

    def close(self) -> None:
        """Write what waits, and close the file."""
        if (reason := self.flush()) is not None:
            logger.error("the last %d lines of %s are lost: %s", len(self._waiting), self.path, reason)
        os.close(self._file)


class TensorBoard:
    """Event files.

    Args:
        folder: of the files.
        step: steps done before; what an interrupted process wrote after them is forgotten.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = self._open(purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write a scalar each.

        Raises:
            OSError: when the disk is full; a later step begins a file of its own.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            self._writer = self._open()
        try:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
            self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
            self._writer.flush()
        except OSError:
            self._writer = None  # its thread has ended with the error
            raise

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, *, purge_step: int | None = None) -> EventFileWriter:
        # TensorBoard's own writer: PyTorch's is the same behind an import of all of PyTorch, which the driver has no other use for
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(self._folder))
        if purge_step is not None:
            writer.add_event(Event(step=purge_step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
        return writer


class RayMetrics:
    """Gauges on Ray's Prometheus endpoint.

    Args:
        run: their label.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Set a gauge each."""
        for name, value in metrics.items():
            self._gauge(name).set(value)

    def close(self) -> None:
        """Nothing is left to do: Ray sends gauges by itself."""

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            gauge = Gauge(prometheus_name(name), description=f"Rethinker step metric {name}", tag_keys=("run",))
            gauge.set_default_tags({"run": self._run})
            self._gauges[name] = gauge
        return self._gauges[name]


class MetricSinks:
    """Writes each step to several sinks under the same names.

    Args:
        sinks: closed with this.
    """

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = sinks

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write a step.

        Args:
            step: from 1.
            metrics: by name; numbers.
        """
        for sink in self._sinks:
            try:
                sink.write(step, metrics)
            except OSError as error:  # a full disk, for TensorBoard; metrics.jsonl has the step in any case
                logger.warning("step %d is not in %s: %s", step, type(sink).__name__, error)

    def flush(self) -> str | None:
        """Write the lines of metrics.jsonl that wait for room.

        Returns:
            None; or why they can't be written.
        """
        reasons = [sink.flush() for sink in self._sinks if isinstance(sink, JsonLines)]
        return next((reason for reason in reasons if reason is not None), None)

    def __enter__(self) -> MetricSinks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                logger.warning("the last steps are not in %s: %s", type(sink).__name__, error)


class StateGauges:
    """Observer of a HealthBoard: 1 for the state that each role is in, 0 for those it was in, and the version that it holds.

    Args:
        run: tag of the Ray metrics.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauge = Gauge(
            prometheus_name("role_state"), description="1 for the state that a role is in", tag_keys=("run", "role", "rank", "state")
        )
        self._version = Gauge(
            prometheus_name("role_version"),
            description="policy version of the weights that a rollout actor holds, -1 for none",
            tag_keys=("run", "role", "rank"),
        )
        self._held: set[tuple[str, int]] = set()  # roles that have said a version

    def __call__(self, role: RoleHealth, before: RoleState | None, after: RoleState | None) -> None:
        """See cluster.health.Observer."""
        for state, value in ((before, 0.0), (after, 1.0)):
            if state is not None:
                self._gauge.set(value, tags={"run": self._run, "role": role.kind, "rank": str(role.rank), "state": state.value})
        member = (role.kind, role.rank)
        if role.version is not None:
            self._held.add(member)
        if member in self._held:
            holds = -1 if role.version is None or after is None else role.version
            self._version.set(holds, tags={"run": self._run, "role": role.kind, "rank": str(role.rank)})


def prometheus_name(name: str) -> str:
    """The metric's name on Ray's Prometheus endpoint, before Ray's own prefix.

    Args:
        name: such as "reward/mean".

    Returns:
        Such as "rethinker_reward_mean".
    """
    return "rethinker_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl back.

    Args:
        path: of the file.

    Returns:
        One dictionary a step, in order.

    Raises:
        ValueError: naming the line that isn't JSON.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return rows

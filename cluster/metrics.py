"""Where step metrics go: any number of sinks. Here are metrics.jsonl, TensorBoard and Ray's own metrics, with them the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ray.util.metrics import Gauge
from torch.utils.tensorboard import SummaryWriter


class MetricSink(Protocol):
    """One place that takes a run's step metrics."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Take the metrics of a step, which is counted from 1."""

    def close(self) -> None:
        """Bring what was taken to its place."""


class JsonLines:
    """One object a line, in a file.

    Args:
        path: of the file, appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files.

    Args:
        folder: of the files.
        step: steps done before; what an interrupted process wrote after them is forgotten.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write a scalar each."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


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
            sink.write(step, metrics)

    def __enter__(self) -> MetricSinks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        for sink in self._sinks:
            sink.close()


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

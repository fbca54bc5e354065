"""Where step metrics go: metrics.jsonl, TensorBoard and Ray's own metrics (and with them the dashboard)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge
from torch.utils.tensorboard import SummaryWriter


class MetricSinks:
    """Writes one object a step to all three places under the same names.

    Args:
        jsonl: file, appended to.
        tensorboard: folder of the event files.
        run: tag of the Ray metrics.
        step: steps done before; TensorBoard forgets what an interrupted process wrote after them.
    """

    def __init__(self, *, jsonl: Path, tensorboard: Path, run: str, step: int = 0) -> None:
        self._jsonl = jsonl.open("a", buffering=1)
        self._tensorboard = SummaryWriter(log_dir=str(tensorboard), purge_step=step + 1)
        self._gauges: dict[str, Gauge] = {}
        self._run = run

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write a step.

        Args:
            step: from 1.
            metrics: by name; numbers.
        """
        self._jsonl.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
            self._gauge(name).set(value)
        self._tensorboard.flush()

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            gauge = Gauge(prometheus_name(name), description=f"Rethinker step metric {name}", tag_keys=("run",))
            gauge.set_default_tags({"run": self._run})
            self._gauges[name] = gauge
        return self._gauges[name]

    def __enter__(self) -> MetricSinks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close the files."""
        self._jsonl.close()
        self._tensorboard.close()


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

"""curves.png: a run's step metrics as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = (  # title, metrics, unit
    ("Accuracy of rollouts", ("accuracy/lenient", "accuracy/strict"), "share of responses"),
    ("Effective-query ratio", ("effective_query_ratio",), "share of prompts"),
    ("Importance ratios", ("ratio/ess", "ratio/mean", "ratio/clip_fraction"), "ratio or share"),
    ("Staleness and age", ("staleness/mean", "staleness/max", "replay/age_mean"), "policy versions"),
    ("Response length", ("response/length_mean",), "tokens"),
    ("Where a step's time goes", ("time/replay_wait_s", "time/update_s", "time/weight_sync_s"), "seconds"),
)


def plot_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the panels of one or several runs into one picture.

    Args:
        runs: metrics.jsonl rows by the run's name; of several runs, each panel shows its first metric only.
        path: PNG to write.
    """
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), constrained_layout=True)
    for axis, (title, names, unit) in zip(axes.flat, PANELS, strict=True):
        for run, rows in runs.items():
            for name in names if len(runs) == 1 else names[:1]:
                points = [(row["step"], row[name]) for row in rows if name in row]
                if points:
                    axis.plot(*zip(*points, strict=True), label=name if len(runs) == 1 else run, linewidth=1.4)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylabel(unit if len(runs) == 1 else f"{names[0]}, {unit}")
        axis.ticklabel_format(useOffset=False)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""Accuracy at equal optimizer steps: how stale batches may be, with corrections and without.

    make study-async
    python -m benchmarks.staleness_study --folder runs/study-async --seeds 1 2 3 --at-most 1

Each run is `rethinker train quickstart` in a shorter form, in a folder of its own. A run that is there with its summary is not made
again, one that was cut short goes on from its checkpoint, and --at-most does so many and stops: the study can be done in slices. Then
the table of all that is there. Seeds come first: after a third of the runs every arm has one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import conditions
from cluster.metrics import read_metrics

ROOT = Path(__file__).parents[1]
UNBOUNDED = ("algorithm.sequence_ratio_low=null", "algorithm.sequence_ratio_high=null")
CORRECTIONS = {
    "on": (),  # the defaults
    "off": ("algorithm.behavior_weight=none", *UNBOUNDED),  # stale tokens count as if the learner had sampled them
    "plain PPO": ("algorithm.proximal=behavior", "algorithm.behavior_weight=none", *UNBOUNDED),
}


@dataclass(frozen=True)
class Arm:
    """What is compared."""

    staleness: int
    corrections: str  # a key of CORRECTIONS

    @property
    def name(self) -> str:
        """Of its runs."""
        return f"k{self.staleness}-{self.corrections.replace(' ', '-')}"


def arms(staleness: Sequence[int], corrections: Sequence[str]) -> Iterator[Arm]:
    """Synchronous runs once: there is nothing to correct in them."""
    for k in staleness:
        for kind in corrections if k else corrections[:1]:
            yield Arm(k, kind)


def main() -> None:
    """Do the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study-async"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--staleness", nargs="*", type=int, default=[0, 4, 8])
    parser.add_argument("--corrections", nargs="*", choices=list(CORRECTIONS), default=["on", "off"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--at-most", type=int, default=10**6, help="runs to do now; 0: only the table")
    parser.add_argument("--words", nargs="*", default=[], help="further settings of every run, key=value")
    arguments = parser.parse_args()
    compared = list(arms(arguments.staleness, arguments.corrections))
    left = arguments.at_most
    for seed in arguments.seeds:
        for arm in compared:
            folder = arguments.folder / f"{arm.name}-seed{seed}"
            if left > 0 and not (folder / "summary.json").exists():
                left -= 1
                _run(folder, arm, seed=seed, steps=arguments.steps, words=arguments.words)
    print(conditions("python -m benchmarks.staleness_study " + " ".join(sys.argv[1:])))
    print(_table(arguments.folder, compared, arguments.seeds))


def _run(folder: Path, arm: Arm, *, seed: int, steps: int, words: Sequence[str]) -> None:
    resumable = (folder / "config.yaml").exists()
    settings = [
        f"run.name={folder.name}", f"run.dir={folder}", f"run.seed={seed}", f"run.num_steps={steps}",
        f"run.resume={str(resumable).lower()}", f"algorithm.max_staleness={arm.staleness}", "checkpoint.every_steps=10",
        "rollout.threads=1", "learner.threads=1", "cluster.dashboard=false", *CORRECTIONS[arm.corrections], *words,
    ]  # fmt: skip
    print(f"{folder.name} {'goes on' if resumable else 'begins'}", flush=True)
    done = subprocess.run([sys.executable, "-m", "cluster", "train", "quickstart", *settings], cwd=ROOT, check=False)
    if done.returncode not in (0, 1):  # 1: the guard stopped it, or a role failed; the table tells
        sys.exit(done.returncode)


def _table(folder: Path, compared: Sequence[Arm], seeds: Sequence[int]) -> str:
    """Accuracies in points, each seed and the mean; beside them what the batches were like."""
    head = ["max_staleness", "corrections", *(f"seed {seed}" for seed in seeds), "mean", "staleness", "ESS, lowest", "masked", "stopped"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for arm in compared:
        accuracies: list[float] = []
        cells: list[str] = []
        rows: list[dict[str, float]] = []
        stopped = 0
        for seed in seeds:
            run = folder / f"{arm.name}-seed{seed}"
            metrics = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
            rows += metrics
            if (run / "summary.json").exists():
                accuracies.append(100 * json.loads((run / "summary.json").read_text())["final"]["accuracy_lenient"])
                cells.append(f"{accuracies[-1]:.1f}")
            else:
                stopped += bool(metrics)
                cells.append("-")
        mean = f"{statistics.fmean(accuracies):.1f}" if accuracies else "-"
        with_ratios = [row for row in rows if "ratio/ess" in row]
        figures = (
            [
                f"{statistics.fmean(row['staleness/mean'] for row in rows):.2f}",
                f"{min(row['ratio/ess'] for row in with_ratios):.2f}",
                f"{100 * statistics.fmean(row['ratio/masked_fraction'] for row in with_ratios):.2f} %",
            ]
            if with_ratios
            else ["-"] * 3
        )
        lines.append(f"| {' | '.join([str(arm.staleness), arm.corrections, *cells, mean, *figures, str(stopped)])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

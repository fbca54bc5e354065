"""Stage 1 alone against stage 1 + forced rethinking, on the quickstart's data, over several seeds.

    python -m benchmarks.rethinking --seeds 1 2 3          # all of it; --runs 1 does one run and stops, the next call goes on

Both arms of a seed begin from the same stage-1 model, with a fresh optimizer and a constant learning rate. The plain arm is trained for
longer and evaluated on the way, so that it can be read at as many optimizer steps and at as many generated tokens as the other arm has.
A finished run is never repeated and an interrupted one goes on, so the study can be done in slices.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import conditions
from cluster.metrics import read_metrics

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "conf" / "experiment" / "rethinking.yaml"
LONGER = 1.6  # steps of the plain arm for each of the other's: a y2 costs less than its y1 again


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    name: str
    folder: Path
    words: list[str]

    @property
    def done(self) -> bool:
        """Whether it has written its summary."""
        return (self.folder / "summary.json").is_file()

    def go(self) -> None:
        """Start it, or go on with it."""
        words = [*self.words, f"run.name={self.name}", f"run.dir={self.folder}", "cluster.dashboard=false"]
        if any((self.folder / "checkpoint").glob("step-*")):
            words.append("run.resume=true")
        elif self.folder.exists():
            words.append("run.overwrite=true")
        subprocess.run([sys.executable, "-m", "cluster", "train", str(CONFIG), *words], cwd=ROOT, check=True)

    def summary(self) -> dict[str, Any]:
        """What it ended with."""
        return json.loads((self.folder / "summary.json").read_text())


def main() -> None:
    """Do what is missing, then print the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--first", type=int, default=30, help="steps of stage 1")
    parser.add_argument("--second", type=int, default=15, help="steps of stage 2")
    parser.add_argument("--every", type=int, default=3, help="steps between evaluations of the plain arm")
    parser.add_argument("--folder", type=Path, default=Path("runs/rethinking-study"))
    parser.add_argument("--runs", type=int, default=100, help="at most so many runs in this call")
    parser.add_argument("--words", nargs="*", default=[], help="further settings of every run, key=value")
    arguments = parser.parse_args()
    missing = [run for seed in arguments.seeds for run in runs_of(seed, arguments) if not run.done]
    for run in missing[: arguments.runs]:
        run.go()
    print(conditions("python -m benchmarks.rethinking " + " ".join(word for word in sys.argv[1:] if "/" not in word)))
    print(table(arguments))


def runs_of(seed: int, arguments: argparse.Namespace) -> list[Run]:
    """Stage 1 of a seed and its two arms, in the order in which they need each other."""
    folder = arguments.folder.resolve()
    common = [f"run.seed={seed}", "checkpoint.every_steps=5", "learner.min_learning_rate_ratio=1", "run.stages=[]", *arguments.words]
    first = Run(f"first-{seed}", folder / f"first-{seed}", [*common, f"run.num_steps={arguments.first}"])
    arm = [*common, f"model.path={first.folder / 'model'}", "coldstart.steps=0", "coldstart.direct_steps=0"]
    plain = [*arm, f"run.num_steps={round(LONGER * arguments.second)}", f"evaluation.every_steps={arguments.every}"]
    forced = [*arm, f"run.num_steps={arguments.second}", "rethinking.enabled=true"]
    return [first, Run(f"plain-{seed}", folder / f"plain-{seed}", plain), Run(f"forced-{seed}", folder / f"forced-{seed}", forced)]


def table(arguments: argparse.Namespace) -> str:
    """Every arm of every seed that is done, as Markdown."""
    rows = [
        "| seed | arm | steps | tokens | none | forced | bound | rethinks by itself | r-r / r-w / w-r / w-w | extra tokens each |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in arguments.seeds:
        first, plain, forced = runs_of(seed, arguments)
        if first.done:
            rows.append(_row(seed, "stage 1", first.summary()["steps"], first.summary()["generated_tokens"], first.summary()["final"]))
        if plain.done and forced.done:
            target = forced.summary()
            for name, step in _steps_to_read(plain, arguments.second, target["generated_tokens"]):
                rows.append(_row(seed, name, step, _tokens(plain, step), _evaluation(plain, step)))
            rows.append(_row(seed, "+ forced rethinking", arguments.second, target["generated_tokens"], target["final"]))
    return "\n".join(rows)


def _steps_to_read(plain: Run, steps: int, tokens: float) -> list[tuple[str, int]]:
    """Where the plain arm has the other's optimizer steps, and where it first has its tokens."""
    evaluated = sorted(int(name.removeprefix("after step ")) for name in plain.summary()["evaluations"] if name.startswith("after step "))
    evaluated.append(plain.summary()["steps"])
    same_tokens = next((step for step in evaluated if _tokens(plain, step) >= tokens), None)
    found = [("stage 1 on, equal steps", steps)]
    return found + ([("stage 1 on, equal tokens", same_tokens)] if same_tokens is not None else [])


def _tokens(run: Run, step: int) -> float:
    return read_metrics(run.folder / "metrics.jsonl")[step - 1]["tokens/generated"]


def _evaluation(run: Run, step: int) -> dict[str, Any]:
    summary = run.summary()
    return summary["final"] if step == summary["steps"] else summary["evaluations"][f"after step {step}"]


def _row(seed: int, arm: str, steps: int, tokens: float, evaluation: dict[str, Any]) -> str:
    figures = evaluation["rethinking"]
    cells = " / ".join(str(count) for count in figures["transitions"].values())
    accuracies = " | ".join(f"{figures[key]:.3f}" for key in ("accuracy_none", "accuracy_forced", "accuracy_bound", "spontaneous_ratio"))
    extra = figures["extra_tokens_mean"]
    return f"| {seed} | {arm} | {steps} | {tokens:,.0f} | {accuracies} | {cells} | {'-' if extra is None else f'{extra:.1f}'} |"


if __name__ == "__main__":
    main()

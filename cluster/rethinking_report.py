"""What forced and spontaneous rethinking did to answers: figures, examples and pictures for people (rethinking.md).

Owns the analysis of evaluated answers and the form of the report. Must not know how answers are sampled.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from actors.answers import EvaluatedAnswer
from algorithms.rethinking import TRANSITIONS, transition
from algorithms.types import Prompt
from cluster.run_folder import RunFolder, write_atomically

EXAMPLES_PER_CELL = 3
SHOWN_CHARS = 2000  # of one segment


def analyse(answers: Sequence[EvaluatedAnswer]) -> dict[str, Any]:
    """Count what rethinking did.

    Args:
        answers: of one evaluation.

    Returns:
        JSON-able: the spontaneous ratio, accuracy with and without it (None: no such answer); where answers were made to go on, the
        accuracies over **all** questions by mode, the transitions of those that did, extra tokens, and the passed over by reason.
    """
    # y1 is judged here, whatever the evaluation's mode counts
    first = [(a.forced.first_correct_lenient if a.forced else a.correct_lenient) for a in answers]
    with_, without = ([right for a, right in zip(answers, first, strict=True) if a.rethinks is wanted] for wanted in (True, False))
    figures: dict[str, Any] = {
        "spontaneous_ratio": _mean([a.rethinks for a in answers]),
        "accuracy_with_spontaneous": _mean(with_),
        "accuracy_without_spontaneous": _mean(without),
    }
    forced = [a for a in answers if a.forced is not None]
    skipped = Counter(a.passed_over for a in answers if a.passed_over)
    if not forced and not skipped:
        return figures
    last = [(a.forced.final_correct_lenient if a.forced else a.correct_lenient) for a in answers]
    cells = Counter(_cell(a) for a in forced)
    return figures | {
        "accuracy_none": _mean(first),
        "accuracy_forced": _mean(last),
        "accuracy_bound": _mean([one or other for one, other in zip(first, last, strict=True)]),
        "forced": len(forced),
        "passed_over": dict(sorted(skipped.items())),
        "transitions": {name: cells[name] for name in TRANSITIONS},
        "extra_tokens_mean": _mean([a.forced.extra_tokens for a in forced if a.forced]),
    }


def write_report(
    folder: RunFolder,
    *,
    evaluations: Mapping[str, Mapping[str, Any]],
    answers: Sequence[EvaluatedAnswer],
    questions: Mapping[str, Prompt],
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Write rethinking.md with its pictures.

    Args:
        folder: of the run.
        evaluations: by name, each with the analysis under "rethinking".
        answers: of the newest evaluation, for the examples.
        questions: by prompt_id, those of the answers.
        metrics: of the run's steps.
    """
    folder.rethinking.mkdir(exist_ok=True)
    parts = ["# Rethinking", "", _accuracy_table(evaluations), "", _transition_table(evaluations)]
    if plot_rethinking(metrics, folder.rethinking / "training.png"):
        parts += ["", "## Over training", "", "Shares of each step's rollouts, and of those that were made to go on.", ""]
        parts += ["![over training](rethinking/training.png)"]
    parts += ["", "## Examples", "", "Of the newest evaluation."]
    for name in TRANSITIONS:
        chosen = [a for a in answers if a.forced is not None and _cell(a) == name][:EXAMPLES_PER_CELL]
        parts += ["", f"### {name.replace('_', ' ')}", "", *([] if chosen else ["None."])]
        parts += [line for answer in chosen for line in _example(answer, questions[answer.prompt_id], folder)]
    write_atomically(folder.path / "rethinking.md", "\n".join(parts) + "\n")


def plot_rethinking(metrics: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw the rethinking metrics over the steps.

    Args:
        metrics: of a run's steps.
        path: PNG to write.

    Returns:
        False, and nothing is drawn, when there are none.
    """
    panels = (
        ("Rollouts", ("rethinking/forced_fraction", "rethinking/spontaneous_ratio")),
        ("Transitions", tuple(f"rethinking/{name}" for name in TRANSITIONS)),
        ("Extra tokens of a step", ("rethinking/extra_tokens",)),
    )
    if not any(name in row for row in metrics for _, names in panels for name in names):
        return False
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), constrained_layout=True)
    for axis, (title, names) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in metrics if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.removeprefix("rethinking/"), linewidth=1.4)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _cell(answer: EvaluatedAnswer) -> str:
    assert answer.forced is not None
    return transition(before=answer.forced.first_correct_lenient, after=answer.forced.final_correct_lenient)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _accuracy_table(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    keys = {
        "none": "accuracy_none", "forced": "accuracy_forced", "bound": "accuracy_bound", "rethinks by itself": "spontaneous_ratio",
        "accuracy where it does": "accuracy_with_spontaneous", "where it doesn't": "accuracy_without_spontaneous",
    }  # fmt: skip
    rows = [f"| evaluation | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, result in evaluations.items():
        values = [result.get("rethinking", {}).get(key) for key in keys.values()]
        rows.append(f"| {name} | {' | '.join('-' if value is None else f'{value:.3f}' for value in values)} |")
    note = "Accuracy over all questions: of y1 (none), y1 + trigger + y2 (forced), the better of both (bound, which needs the gold answer)."
    return "\n".join([note, "", *rows])


def _transition_table(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    cells = " | ".join(name.replace("_", " ") for name in TRANSITIONS)
    rows = [f"| evaluation | {cells} | passed over | extra tokens each |", "|---" * 7 + "|"]
    for name, result in evaluations.items():
        figures = result.get("rethinking", {})
        if "transitions" in figures:
            counts = " | ".join(str(figures["transitions"][cell]) for cell in TRANSITIONS)
            extra = "-" if figures["extra_tokens_mean"] is None else f"{figures['extra_tokens_mean']:.1f}"
            rows.append(f"| {name} | {counts} | {sum(figures['passed_over'].values())} | {extra} |")
    return "\n".join(["Answers that were made to go on, by y1 and the final answer:", "", *rows])


def _example(answer: EvaluatedAnswer, question: Prompt, folder: RunFolder) -> list[str]:
    """One answer with its question and pictures, which are copied so that the folder can be moved."""
    assert answer.forced is not None
    lines = []
    for number, path in enumerate(map(Path, question.image_paths)):
        name = f"{''.join(c if c.isalnum() else '-' for c in answer.prompt_id)}-{number}{path.suffix}"
        shutil.copyfile(path, folder.rethinking / name)
        lines.append(f"![image {number + 1}](rethinking/{name})")
    texts = {
        f"question {answer.prompt_id}, gold answer {answer.answer}": question.question, "y1": answer.forced.y1,
        "trigger": answer.forced.trigger, "y2": answer.forced.y2,
    }  # fmt: skip
    for title, text in texts.items():
        shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} ... ({len(text)} characters)"
        lines += ["", f"{title}:", "", *(f"    {line}" for line in shown.split("\n"))]  # indented: nothing of it is Markdown
    return [*lines, "", "---", ""]

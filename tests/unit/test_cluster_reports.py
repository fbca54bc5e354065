"""What a run tells: metrics in their places, accuracies, lines for people, pictures."""

import io
import json

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actors.answers import EvaluatedAnswer
from cluster import metrics as metrics_module
from cluster.evaluation import held_out_questions, report
from cluster.metrics import JsonLines, MetricSinks, RayMetrics, TensorBoard, prometheus_name, read_metrics
from cluster.plots import plot_curves
from cluster.progress import Progress
from cluster.views import PlainView
from tests.fakes import FakeGauges, FakePrompts

STEP = {
    "reward/mean": 0.25,
    "accuracy/lenient": 0.5,
    "effective_query_ratio": 0.75,
    "replay/size": 10,
    "staleness/mean": 0.0,
    "time/step_s": 2.0,
}


@pytest.fixture
def gauges(monkeypatch):
    found = FakeGauges()
    monkeypatch.setattr(metrics_module, "Gauge", found.make)
    return found.values


def sinks(folder, **settings):
    return MetricSinks([JsonLines(folder / "metrics.jsonl"), TensorBoard(folder / "events", **settings), RayMetrics("r")])


def test_a_step_is_in_all_three_places_under_one_name(tmp_path, gauges):
    with sinks(tmp_path) as out:
        out.write(1, STEP)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, **STEP}]
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert events.Scalars("reward/mean")[0].value == 0.25
    assert gauges == {prometheus_name(name): value for name, value in STEP.items()}
    assert prometheus_name("kl/behavior_proximal") == "rethinker_kl_behavior_proximal"


def test_a_resumed_run_replaces_the_steps_that_it_does_again(tmp_path, gauges):
    with sinks(tmp_path) as out:
        for step in (1, 2, 3):
            out.write(step, {"reward/mean": 0.1 * step})
    with sinks(tmp_path, step=1) as out:
        out.write(2, {"reward/mean": 0.9})
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("reward/mean")] == [(1, 0.1), (2, 0.9)]


def test_a_damaged_metrics_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "rew')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not JSON"):
        read_metrics(path)


def answer(category, *, strict, lenient, tokens=10, finish_reason="stop"):
    return EvaluatedAnswer(
        prompt_id="p", category=category, correct_strict=strict, correct_lenient=lenient, grade_reason="", finish_reason=finish_reason,
        num_response_tokens=tokens, response="", answer="",
    )  # fmt: skip


def test_accuracies_by_category():
    answers = [
        answer("a", strict=True, lenient=True),
        answer("a", strict=False, lenient=True, tokens=20),
        answer("b", strict=False, lenient=False, finish_reason="length"),
        answer("b", strict=False, lenient=True),
    ]
    result = report(answers, bad=[("p9", "why")])
    assert (result["questions"], result["bad_questions"]) == (4, 1)
    assert (result["accuracy_strict"], result["accuracy_lenient"]) == (0.25, 0.75)
    assert result["truncated_fraction"] == 0.25 and result["response_length_mean"] == 12.5
    assert {name: part["accuracy_lenient"] for name, part in result["categories"].items()} == {"a": 1.0, "b": 0.5}
    assert report([], bad=[])["accuracy_lenient"] == 0


def test_held_out_questions_are_the_same_for_every_run():
    questions = list(FakePrompts(100))
    chosen = held_out_questions(questions, 30)
    assert len({prompt.prompt_id for prompt in chosen}) == 30 and chosen == held_out_questions(questions, 30)
    assert held_out_questions(questions, 0) == held_out_questions(questions, 500) == questions


def test_progress_shows_phases_and_steps_and_keeps_their_seconds():
    text = io.StringIO()
    progress = Progress(PlainView(Console(file=text, highlight=False, soft_wrap=True)))
    with progress.phase("training"):
        progress.step(3, 60, STEP, seconds_left=114.0)
    assert set(progress.seconds) == {"training"}
    lines = text.getvalue().splitlines()
    assert lines[0] == "training ..." and lines[-1].startswith("training done in")
    for word in ("step 3/60", "reward 0.250", "effective 0.75", "replay 10", "staleness 0.0", "114 s left"):
        assert word in lines[1]


def test_a_failed_phase_is_not_told_as_done():
    text = io.StringIO()
    progress = Progress(PlainView(Console(file=text)))
    with pytest.raises(ValueError, match="no"), progress.phase("training"):
        raise ValueError("no")
    assert "done" not in text.getvalue() and "training" in progress.seconds


def test_curves_are_a_picture_also_of_a_run_whose_steps_were_empty(tmp_path):
    plot_curves({"run": [{"step": 1, "effective_query_ratio": 0.0}]}, tmp_path / "one.png")
    plot_curves({"a": [{"step": 1, **STEP}], "b": [{"step": 1, **STEP}]}, tmp_path / "two.png")
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("one.png", "two.png"))

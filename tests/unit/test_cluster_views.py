"""What a terminal, a file and a program see of a run's progress."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cluster.live_view import MEASURES, LiveView, sparkline
from cluster.progress import Progress
from cluster.trackers import check_trackers
from cluster.views import JsonView, PlainView, make_view
from conf.loading import ConfigError, load_config
from conf.schema import Terminal

STEP = {
    "reward/mean": 0.25, "accuracy/lenient": 0.5, "effective_query_ratio": 0.75, "replay/size": 10.0, "staleness/mean": 1.0,
    "time/step_s": 4.0, "time/update_s": 3.0, "time/replay_wait_s": 1.0,
}  # fmt: skip


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


@pytest.mark.parametrize(
    ("kind", "console", "expected"),
    [
        (Terminal.auto, terminal(), LiveView),
        (Terminal.auto, Console(file=io.StringIO()), PlainView),
        (Terminal.plain, terminal(), PlainView),
        (Terminal.live, Console(file=io.StringIO()), LiveView),
        (Terminal.json, terminal(), JsonView),
    ],
)
def test_a_view_for_whoever_looks(kind, console, expected):
    assert type(make_view(kind, console)) is expected


def test_json_lines_say_everything_that_the_other_views_show():
    file = io.StringIO()
    progress = Progress(JsonView(file))
    with progress.phase("training"):
        progress.step(3, 60, STEP, seconds_left=228.0)
        progress.say("an answer [2] in brackets")
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["phase", "step", "message", "phase_done"]
    assert lines[1] == {"event": "step", "step": 3, "num_steps": 60, "seconds_left": 228.0, "metrics": STEP}
    assert lines[2]["text"] == "an answer [2] in brackets"


def test_what_is_in_brackets_is_printed_as_it_is():
    file = io.StringIO()
    Progress(PlainView(Console(file=file, soft_wrap=True))).say("the cluster has [red]no room[/red] for [3, 4]")
    assert file.getvalue() == "the cluster has [red]no room[/red] for [3, 4]\n"


def test_the_live_view_shows_phases_measures_and_where_the_time_went():
    console = terminal()
    view = LiveView(console)
    with view.phase("training"):
        for step, reward in enumerate((0.0, 0.5, 1.0), start=1):
            view.step(step, 60, {**STEP, "reward/mean": reward}, seconds_left=228.0)
        with view.phase("evaluating"):
            console.print(view.picture())
    text = console.file.getvalue()
    for words in (
        "step 3/60",
        "3 min 48 s left",
        "reward",
        "1.000",
        "▁▅█",
        "4.0 s a step",
        "waiting 25 %, update 75 %",
        "training",
        "evaluating",
    ):
        assert words in text, words


def test_the_live_view_is_gone_when_a_phase_fails_and_can_come_again():
    console = terminal()
    view = LiveView(console)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), view.phase("training"):
            raise ValueError("no")
    console.print("still a line")
    assert console.file.getvalue().count("\x1b[?25h") == 2  # the cursor is shown again, each time
    assert console.file.getvalue().endswith("still a line\n")


def test_a_line_of_bars_goes_from_lowest_to_highest():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([]) == ""


def test_every_measure_of_the_live_view_is_a_documented_metric():
    page = (Path(__file__).parents[2] / "docs/monitoring.md").read_text()
    assert [name for name in MEASURES if f"`{name}`" not in page] == []


def test_phases_and_steps_are_noted_for_the_job():
    notes = {}
    progress = Progress(PlainView(Console(file=io.StringIO())), note=notes.update)
    with progress.phase("training"):
        progress.step(3, 60, STEP, seconds_left=228.0)
    assert notes == {"phase": "training", "progress": "step 3/60, 228 s left"}


def test_a_tracker_without_its_package_is_refused_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr("cluster.trackers.find_spec", lambda name: None)
    check_trackers(load_config("quickstart"))
    with pytest.raises(ConfigError, match=r"report\.trackers names wandb.*pip install 'rethinker\[wandb\]'"):
        check_trackers(load_config("quickstart", ["report.trackers=[tensorboard,wandb]"]))

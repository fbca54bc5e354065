"""SIGTERM: a checkpoint within the grace, an end in any case."""

from __future__ import annotations

import asyncio

import pytest

from cluster import metrics as metrics_module
from cluster.progress import Progress
from cluster.run_control import RunControl
from cluster.run_folder import RunFolder
from conf.loading import load_config
from tests.fakes import FakeGauges


@pytest.fixture
def control(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics_module, "Gauge", FakeGauges().make)
    return RunControl(load_config("quickstart", ["run.stop_grace_s=0.05"]), RunFolder(tmp_path), Progress())


class Steps:
    """A controller that only hears."""

    def __init__(self) -> None:
        self.heard: list[bool] = []

    def stop(self, *, at_once: bool = False) -> None:
        self.heard.append(at_once)


def sigterm(control: RunControl, *, times: int = 1, wait_s: float = 0.0, release: bool = False) -> list[str]:
    """Send it, wait, and say how often the run was interrupted."""
    interrupted: list[str] = []

    async def run() -> None:
        for _ in range(times):
            control.terminate(lambda: interrupted.append("now"))
        if release:
            await control.release()
        await asyncio.sleep(wait_s)

    asyncio.run(run())
    return interrupted


def test_before_the_first_step_there_is_nothing_to_keep(control):
    assert sigterm(control) == ["now"]


def test_the_step_under_way_is_finished_and_no_other_is_begun(control):
    control._controller = steps = Steps()
    assert sigterm(control) == []
    assert steps.heard == [True] and control.stopping and control.terminated


def test_what_takes_longer_than_the_grace_is_given_up(control):
    control._controller = Steps()
    assert sigterm(control, wait_s=0.2) == ["now"]


def test_a_run_that_ends_in_time_is_not_interrupted_any_more(control):
    control._controller = Steps()
    assert sigterm(control, wait_s=0.2, release=True) == []


def test_a_second_signal_does_not_wait(control):
    control._controller = Steps()
    assert sigterm(control, times=2) == ["now"]

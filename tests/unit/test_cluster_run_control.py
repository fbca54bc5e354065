"""What goes on beside the steps: a stop, a scale, and the end of supervision in the middle of the work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cluster import run_control
from cluster.health import RoleState
from cluster.progress import Progress
from cluster.restarts import RestartBudgetExceeded
from cluster.run_control import RunControl
from cluster.run_folder import RunFolder
from conf.schema import Config


class FakeController:
    """Makes steps of a tick until it is stopped."""

    def __init__(self) -> None:
        self.step, self.in_step = 4, False
        self.stops: list[bool] = []
        self.replay = self
        self.health = self

    def remote(self) -> Any:
        async def answer() -> dict[str, int]:
            return {"pid": 1}

        return answer()

    def stop(self, *, at_once: bool = False) -> None:
        self.stops.append(at_once)

    async def run(self) -> str:
        while not self.stops:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # the step under way
        self.step += 1
        self.in_step = False
        return "done"


class FakeSupervisor:
    """Has so many in service, and fails when it is told to."""

    def __init__(self, in_service: int = 2) -> None:
        self.in_service = in_service
        self.failure: Exception | None = None
        self.target = in_service
        self.seen: list[dict[str, float]] = []

    async def run(self) -> None:
        while self.failure is None:
            await asyncio.sleep(0.01)
        raise self.failure

    def describe(self) -> dict[str, int]:
        return {"in_service": self.in_service, "target": self.target, "starting": 0, "leaving": 0}

    def notices(self) -> list[str]:
        return []

    def scale(self, target: int) -> str:
        self.target = target
        return f"{target} wanted"

    def follow(self, metrics: dict[str, float]) -> None:
        self.seen.append(metrics)


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunControl:
    monkeypatch.setattr(run_control, "StateGauges", lambda run: lambda *change: None)
    return RunControl(Config(), RunFolder(tmp_path), Progress())


def test_a_stop_lets_the_step_be_finished_and_without_samplers_does_not_wait_for_one(control: RunControl) -> None:
    async def story() -> None:
        assert control._stop({}) == "the run ends after what it is at: starting" and control.stopping
        with pytest.raises(ValueError, match="no rollout actors yet"):
            control._scale({"rollouts": 2})
        controller, supervisor = FakeController(), FakeSupervisor()
        control.watch(controller, supervisor)  # type: ignore[arg-type]
        assert "once the step under way, 5, is done" in control._stop({}) and controller.stops == [False]
        assert await control.supervised(controller.run()) == "done" and controller.step == 5
        assert control._scale({"rollouts": 7}) == "7 wanted" and supervisor.target == 7
        supervisor.in_service = 0
        assert "nobody samples" in control._stop({}) and controller.stops == [False, True]
        await control.release()

    asyncio.run(story())


@pytest.mark.parametrize("in_step", [True, False])
def test_when_supervision_gives_up_the_step_under_way_is_finished_and_its_reason_raised(control: RunControl, in_step: bool) -> None:
    async def story() -> None:
        controller, supervisor = FakeController(), FakeSupervisor()
        controller.in_step = in_step
        control.watch(controller, supervisor)  # type: ignore[arg-type]
        working = asyncio.ensure_future(control.supervised(controller.run()))
        await asyncio.sleep(0.03)
        supervisor.failure = RestartBudgetExceeded("disk full (the first of 17)")
        with pytest.raises(RestartBudgetExceeded, match="disk full"):
            await working
        assert controller.stops == [True] and controller.step == 5 and not controller.in_step
        await control.release()

    asyncio.run(story())


def test_a_step_that_begins_although_supervision_gave_up_is_finished_too(control: RunControl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its draw was made just before it was called off."""
    monkeypatch.setattr(run_control, "LEAVE_AT_ONCE_S", 0.05)

    class LateDraw(FakeController):
        async def run(self) -> str:
            while not self.stops:
                await asyncio.sleep(0.01)
            self.in_step = True
            await asyncio.sleep(0.3)
            self.step, self.in_step = self.step + 1, False
            return "done"

    async def story() -> None:
        controller, supervisor = LateDraw(), FakeSupervisor()
        supervisor.failure = RestartBudgetExceeded("killed")
        control.watch(controller, supervisor)  # type: ignore[arg-type]
        with pytest.raises(RestartBudgetExceeded):
            await control.supervised(controller.run())
        assert controller.step == 5 and not controller.in_step
        await control.release()

    asyncio.run(story())


def test_a_status_is_json_and_tells_of_the_learner_s_death_and_return(control: RunControl) -> None:
    async def story() -> None:
        supervisor = FakeSupervisor()
        control.watch(FakeController(), supervisor)  # type: ignore[arg-type]
        control.learner_died("learner rank 1 failed to take step 4: killed\nmore")
        control.learner_died("learner rank 1 failed to start")
        assert control.board.state_of("learner", 0) is RoleState.restarting
        control.observe({"reward/mean": 0.5, "loss": float("nan")})
        status = json.loads(json.dumps(control.status()))
        assert status["metrics"] == {"reward/mean": 0.5} and supervisor.seen[0]["reward/mean"] == 0.5
        assert status["deaths"][0]["cause"] == "learner rank 1 failed to take step 4: killed"
        (learner,) = [role for role in status["roles"] if role["kind"] == "learner"]
        assert (learner["state"], learner["restarts"]) == ("healthy", 1)
        await asyncio.sleep(0.02)
        await control.release()
        assert control.board.as_list() == []

    asyncio.run(story())

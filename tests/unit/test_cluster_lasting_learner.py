"""A learner group that is lost: what the next one is brought to, and when the run gives up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from cluster import lasting_learner
from cluster.lasting_learner import LastingLearner
from cluster.restarts import RestartBudget, RestartBudgetExceeded
from learner.group import LearnerGroupError


class CountingGroup:
    """A group whose state is the list of updates that made it.

    Args:
        fail_at: numbers of the calls that fail, over all methods and from 0.
    """

    def __init__(self, fail_at=(), cause: BaseException | None = None) -> None:
        self.made: list[tuple[int, str]] | None = []
        self.saved: dict[str, list] = {}
        self.starts = 0
        self._calls, self._fail_at, self._cause = 0, set(fail_at), cause

    def _call(self, what: str) -> None:
        number, self._calls = self._calls, self._calls + 1
        if number in self._fail_at:
            self.made = None  # whatever it held is gone
            raise LearnerGroupError(f"learner rank 0 failed to {what}") from self._cause

    async def start(self) -> None:
        self._call("start")
        self.starts += 1
        self.made = []

    async def update(self, shards, *, step: int) -> dict[str, float]:
        self._call(f"take step {step}")
        self.made.append((step, shards[0]))
        return {"loss": float(step)}

    async def publish(self) -> list:
        self._call("publish")
        return list(self.made)

    async def load_checkpoint(self, folder: str) -> None:
        self._call("load")
        self.made = list(self.saved[folder])

    async def close(self) -> None:
        pass


def budget(restarts: int = 100) -> RestartBudget:
    return RestartBudget(max_restarts=restarts, window_s=60.0)


def run(group: CountingGroup, lasting: LastingLearner, *, steps: int, every: int) -> list:
    """A run's calls: update, publish, now and then a checkpoint. Returns what the last publish has published."""

    async def go():
        for step in range(steps):
            assert await lasting.update([f"rows {step}"], step=step) == {"loss": float(step)}
            published = await lasting.survive(group.publish)
            assert published == [(s, f"rows {s}") for s in range(step + 1)], "a version was published that lacks a step, or has one twice"
            if (step + 1) % every == 0:
                group.saved[f"step-{step + 1}/learner"] = list(group.made)
                lasting.covered(Path(f"step-{step + 1}"), steps=step + 1)
        return published

    return asyncio.run(go())


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("fail_at", [{0}, {1}, {7}, {8}, {13, 14}, {13, 15, 16, 17}, set(range(3, 60, 5))])
def test_whatever_fails_every_version_is_made_of_all_steps_once(fail_at, every):
    group = CountingGroup(fail_at)
    published = run(group, LastingLearner(group, budget()), steps=10, every=every)
    assert len(published) == 10


def test_a_checkpoint_that_is_written_while_training_goes_on_keeps_the_steps_since(tmp_path):
    group = CountingGroup()
    lasting = LastingLearner(group, budget())

    async def go():
        for step in range(4):
            await lasting.update([f"rows {step}"], step=step)
        group.saved["step-2/learner"] = [(0, "rows 0"), (1, "rows 1")]
        lasting.covered(Path("step-2"), steps=2)
        group._fail_at = {group._calls}
        assert await lasting.survive(group.publish) == [(step, f"rows {step}") for step in range(4)]

    asyncio.run(go())


def test_the_budget_ends_it_with_the_first_cause():
    group = CountingGroup(set(range(2, 1000)))
    with pytest.raises(RestartBudgetExceeded, match="learner rank 0 failed to take step 1"):
        run(group, LastingLearner(group, budget(3)), steps=5, every=2)


def test_code_that_raises_again_for_the_same_step_is_no_accident():
    cause = RayTaskError("update", "traceback", ValueError("an image is gone"))
    group = CountingGroup(fail_at={4, 8, 9}, cause=cause)  # update of step 2; in between start and two steps again
    with pytest.raises(LearnerGroupError, match="take step 2"):
        run(group, LastingLearner(group, budget()), steps=5, every=100)
    assert group.starts == 1


def test_steps_that_were_not_kept_are_told(monkeypatch):
    monkeypatch.setattr(lasting_learner, "MAX_KEPT_STEPS", 3)
    group = CountingGroup(fail_at={10})
    with pytest.raises(LearnerGroupError, match=r"at most 3 are kept\): set checkpoint.every_steps"):
        run(group, LastingLearner(group, budget()), steps=8, every=100)

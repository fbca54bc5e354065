"""Controller, admission, ledger and replay together, with engines and a learner that only pass time: the staleness bound."""

import asyncio
import dataclasses
import random
from collections import Counter

import pytest

from cluster.bad_rows import BadRows, TooManyBadRows
from cluster.controller import Controller, _came_all_the_same
from cluster.ledger import PromptLedger
from conf.loading import load_config
from conf.schema import ReplayMode
from conf.staleness import staleness_bound
from tests.fakes import FakePrompts, LocalReplay, TickingFleet, TickingLearner

PER_STEP = 3
handed_out: list[str] = []  # group ids in the order in which the last run's fleet got them


def run(
    *,
    max_staleness: int,
    ticks,
    update_ticks: int,
    steps: int = 30,
    mode: ReplayMode = ReplayMode.none,
    bad=(),
    lost=(),
    batch_size=None,
    stop_after=None,
    draw_timeout_s=30,
    hurt=None,
    max_bad_fraction: float = 1.0,
):
    """The steps' metrics, and what the steps consumed: (policy version, trajectory)."""
    words = ["algorithm.samples_per_prompt=2", "rollout.prompts_per_call=2", f"replay.timeout_s={draw_timeout_s}"]
    config = load_config("quickstart", words)
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, num_steps=steps),
        algorithm=dataclasses.replace(config.algorithm, prompts_per_step=PER_STEP, max_staleness=max_staleness, batch_size=batch_size),
        replay=dataclasses.replace(config.replay, mode=mode),
    )
    rows: list[dict[str, float]] = []
    handed_out.clear()

    async def scenario() -> LocalReplay:
        replay = LocalReplay(config.replay, seed=1)
        fleet = TickingFleet(replay, ticks=ticks, bad=bad, lost=lost)
        learner = TickingLearner(fleet, ticks=update_ticks)

        async def after_step(step: int, metrics: dict[str, float]) -> None:
            rows.append(metrics)
            if step == stop_after:
                controller.stop()

        controller = Controller(
            config=config,
            ledger=PromptLedger(FakePrompts(50), seed=1),
            fleet=fleet,
            replay=replay,
            learner=learner,
            transport=learner,
            bad_rows=BadRows(max_fraction=max_bad_fraction),
            after_step=after_step,
        )
        hurting = asyncio.ensure_future(hurt(fleet)) if hurt is not None else None
        await controller.run()
        assert hurting is None or hurting.done()
        handed_out.extend(fleet.handed_out)
        return replay

    replay = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert len(rows) == (stop_after or steps)
    assert max(row["replay/waiting_groups"] for row in rows) <= staleness_bound(config).groups_ahead
    return rows, replay.consumed


def slow_ones(turn: int) -> int:
    """One group in seven takes as long as many steps."""
    return 200 if turn % 7 == 3 else 2


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", ["slow groups", "slow learner", "anything"])
def test_the_bound_is_reached_and_never_passed(max_staleness: int, kind: str):
    rng = random.Random(max_staleness)
    ticks = {"slow groups": slow_ones, "slow learner": lambda turn: 1, "anything": lambda turn: int(rng.paretovariate(0.7)) % 300 + 1}[kind]
    rows, consumed = run(max_staleness=max_staleness, ticks=ticks, update_ticks=40 if kind == "slow learner" else 3)
    ages = [version - trajectory.policy_version for version, trajectory in consumed]
    assert len(ages) == 30 * PER_STEP * 2
    assert min(ages) >= 0
    assert max(ages) == max_staleness == max(row["staleness/max"] for row in rows)
    assert all(row["admission/dropped_groups"] == row["admission/length_bias"] == 0 for row in rows)


def test_every_token_of_a_group_that_spans_versions_is_within_the_bound():
    _, consumed = run(max_staleness=2, ticks=slow_ones, update_ticks=3)
    assert any(len(set(trajectory.token_versions)) > 1 for _, trajectory in consumed), "no group was slow enough to see an update"
    assert all(0 <= version - trajectory.token_versions.min() <= 2 for version, trajectory in consumed)


def test_bad_prompts_neither_leave_a_gap_nor_move_the_bound():
    rows, consumed = run(max_staleness=2, ticks=slow_ones, update_ticks=3, bad=range(0, 90, 5))
    assert max(version - trajectory.policy_version for version, trajectory in consumed) == 2
    assert rows[-1]["data/bad_rows"] > 0 and len(consumed) == 30 * PER_STEP * 2


def test_too_many_bad_prompts_end_the_run_in_its_midst():
    with pytest.raises(ExceptionGroup) as failure:
        run(max_staleness=2, ticks=slow_ones, update_ticks=3, bad=range(0, 90, 5), max_bad_fraction=0.1)
    assert failure.group_contains(TooManyBadRows, match=r"data.max_bad_fraction=0\.1")


def test_older_rows_of_replay_are_bounded_by_their_own_age():
    rows, _ = run(max_staleness=1, ticks=slow_ones, update_ticks=3, mode=ReplayMode.fresh, batch_size=24)  # 6 of them are fresh
    assert max(row["replay/age_max"] for row in rows) == 8  # replay.max_age
    assert max(row["staleness/max"] for row in rows) == 1


def test_steps_consume_groups_in_the_order_of_issue_whatever_is_finished_first():
    def order(ticks):
        return [trajectory.group_id for _, trajectory in run(max_staleness=3, ticks=ticks, update_ticks=3)[1]]

    assert order(slow_ones) == order(lambda turn: 1)


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_prompts_of_a_lost_replica_are_issued_again_once_and_consumed_once(max_staleness: int):
    """One group of each lost call was delivered before: replay knows it when it comes again."""
    ordinary = run(max_staleness=max_staleness, ticks=slow_ones, update_ticks=3)[1]
    rows, consumed = run(max_staleness=max_staleness, ticks=slow_ones, update_ticks=3, lost=range(0, 90, 9))
    repeated = [group_id for group_id, count in Counter(handed_out).items() if count > 1]
    assert len(repeated) >= 10 and max(Counter(handed_out).values()) == 2
    assert [trajectory.trajectory_id for _, trajectory in consumed] == [trajectory.trajectory_id for _, trajectory in ordinary]
    assert rows[-1]["replay/duplicate_groups"] >= 1


def test_a_request_to_stop_ends_the_run_after_the_step_under_way():
    rows, consumed = run(max_staleness=2, ticks=slow_ones, update_ticks=3, stop_after=7)
    assert len(rows) == 7 and len(consumed) == 7 * PER_STEP * 2


def test_a_draw_that_found_nothing_while_nobody_sampled_is_made_again():
    """Its own deadline passes three times; how long one waits for somebody to sample is another one."""

    async def nobody_for_a_while(fleet: TickingFleet) -> None:
        back = asyncio.Event()
        replicas, fleet.replicas, fleet.someone, roll_out = fleet.replicas, [], back.wait, fleet.rollout

        async def rollout(requests):
            await back.wait()
            return await roll_out(requests)

        fleet.rollout = rollout
        await asyncio.sleep(0.5)
        fleet.replicas = replicas
        back.set()

    rows, _ = run(max_staleness=0, ticks=slow_ones, update_ticks=3, draw_timeout_s=0.15, hurt=nobody_for_a_while)
    assert len(rows) == 30
    with pytest.raises(ExceptionGroup) as failure:  # somebody samples, only too slowly
        run(max_staleness=0, ticks=lambda turn: 10**9, update_ticks=3, draw_timeout_s=0.15)
    assert "fresh groups" in str(failure.value.exceptions[0])


@pytest.mark.parametrize(
    ("max_staleness", "mode"),
    [(0, ReplayMode.fresh), (1, ReplayMode.none), (1, ReplayMode.fresh), (2, ReplayMode.fifo), (5, ReplayMode.fresh)],
)
def test_without_any_rollout_actor_steps_go_on_with_what_replay_has_and_then_wait(max_staleness: int, mode: ReplayMode):
    """Nothing is then left over or made twice, and no step is made of older rows alone, which would age what waits past the bound."""
    seen: dict[str, int] = {}

    async def all_at_once(fleet: TickingFleet) -> None:
        while fleet.version < 10:
            await asyncio.sleep(0)
        fleet.all_die()
        for _ in range(3000):  # long enough for every step that could be made
            await asyncio.sleep(0)
        seen["made"], seen["ready"], seen["waiting"] = (
            fleet.version - 10,
            fleet.replay.buffer.ready_groups,
            fleet.replay.limiter.num_waiting,
        )
        fleet.come_back()

    settings = {"max_staleness": max_staleness, "ticks": lambda turn: 1, "update_ticks": 40, "mode": mode}
    rows, consumed = run(**settings, hurt=all_at_once)
    assert seen == {"made": max_staleness, "ready": 0, "waiting": 1}  # besides the step that was under way
    assert max(row["staleness/max"] for row in rows) == max_staleness
    assert all(row["rollout/groups"] == PER_STEP and row["admission/dropped_groups"] == 0 for row in rows)
    ordinary = run(**settings)[1]
    assert [trajectory.trajectory_id for _, trajectory in consumed] == [trajectory.trajectory_id for _, trajectory in ordinary]


def test_groups_of_a_half_delivered_step_wait_for_the_rest_of_it():
    """All die in the middle of the rollouts of a step: what was delivered of it is consumed with what comes later, within the bound."""
    seen: dict[str, int] = {}

    async def in_its_midst(fleet: TickingFleet) -> None:
        while fleet.version < 10 or fleet.replay.buffer.waiting_groups % PER_STEP == 0:
            await asyncio.sleep(0)
        fleet.all_die()
        for _ in range(3000):
            await asyncio.sleep(0)
        seen["version"], seen["waiting"] = fleet.version, fleet.replay.buffer.waiting_groups
        fleet.come_back()

    rows, consumed = run(max_staleness=1, ticks=lambda turn: 1 + 7 * (turn % 3), update_ticks=3, mode=ReplayMode.fresh, hurt=in_its_midst)
    assert 10 <= seen["version"] <= 12 and 0 < seen["waiting"] < PER_STEP
    assert max(row["staleness/max"] for row in rows) == 1 and all(row["admission/dropped_groups"] == 0 for row in rows)
    assert len({trajectory.trajectory_id for _, trajectory in consumed}) == len(consumed) == 30 * PER_STEP * 2


@pytest.mark.parametrize("in_time", [True, False])
def test_a_stop_at_once_calls_the_draw_off_unless_it_was_made_already(monkeypatch: pytest.MonkeyPatch, in_time: bool):
    """Nobody samples for the last step: it is not waited for; a draw that was made just before is trained on, not lost."""
    cancelled = []

    def cancel(stats) -> None:
        cancelled.append(stats)
        if not in_time:
            next(task for task in asyncio.all_tasks() if task.get_name() == "draw").cancel()

    monkeypatch.setattr("cluster.controller.ray.cancel", cancel)

    async def draw(answer: asyncio.Future) -> dict[str, float]:
        return await answer

    async def story() -> None:
        answer = asyncio.get_running_loop().create_future()
        answering = asyncio.create_task(draw(answer), name="draw")
        coming = asyncio.create_task(_came_all_the_same("stats", answering))
        await asyncio.sleep(0.01)
        if in_time:
            answer.set_result({"reward/mean": 1.0})
        assert await coming is in_time and cancelled == ["stats"]

    asyncio.run(story())

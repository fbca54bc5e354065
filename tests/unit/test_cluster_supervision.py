"""Supervision of a fleet without Ray: who is suspected, given up, replaced, added and let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from actors.engine import EngineError
from cluster import fleet, supervision
from cluster.deaths import Whereabouts
from cluster.fleet import KIND, NoReplicaError, RolloutFleet
from cluster.health import DeathReport, HealthBoard, RoleState
from cluster.replica import Replica, ReplicaLostError
from cluster.restarts import RestartBudget, RestartBudgetExceeded
from cluster.supervision import Supervisor
from conf.schema import Config, RolloutConfig, SupervisionConfig
from learner.group import LearnerGroupError

SETTINGS = SupervisionConfig(
    heartbeat_s=0.05, suspect_after=2, dead_after=5, no_rollouts_timeout_s=0.4, drain_timeout_s=0.3, max_restarts=4
)


class Answer:
    """A method of an actor."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class FakeActor:
    """Says how it is as it is told to."""

    def __init__(self) -> None:
        self.engine = "running"
        self.version = 0
        self.silent = False
        self.dead = False
        self.closed = False
        self.health, self.close, self.rollout, self.score = map(Answer, (self._health, self._close, self._rollout, self._score))

    async def _health(self) -> dict[str, Any]:
        if self.dead:
            raise ActorDiedError
        if self.silent:
            await asyncio.sleep(3600)
        return {"engine": self.engine, "version": self.version}

    async def _rollout(self, requests: list[Any]) -> list[Any]:
        await asyncio.sleep(0.2)
        return requests

    async def _score(self, *_: Any) -> list[float]:
        while not self.closed:
            await asyncio.sleep(0.005)
        raise EngineError("the request was ended with 'abort'")  # as a closing engine ends what it is at

    async def _close(self) -> None:
        self.closed = True
        await asyncio.sleep(0.05)


class FakeReplica(Replica):
    """Without Ray."""

    def kill(self) -> None:
        """No process to end."""


class FakeFleet(RolloutFleet):
    """Places replicas at once, unless a test holds them back."""

    def _place(self, slot: int) -> Replica:
        self.board.enter(KIND, slot, RoleState.starting)
        replica = FakeReplica(index=self._placed, actor=FakeActor(), placement=None, slot=slot)  # type: ignore[arg-type]
        self._placed += 1
        return replica

    async def _start(self, replica: Replica, version: int) -> None:
        await asyncio.sleep(0.02)
        if broken := getattr(self, "broken", None):
            raise broken
        replica.place = Whereabouts(node_id="n", address="10.0.0.1", pid=100 + replica.index, worker_id="w")


class FakeTransport:
    """Joins without weights."""

    def __init__(self, fleet: FakeFleet) -> None:
        self.fleet = fleet
        self.failures: list[Exception] = []

    async def join(self, slot: int, *, placed: Callable[..., Any]) -> Replica:
        replica = await self.fleet.add(slot, placed=placed)
        if self.failures:
            self.fleet.abandon(replica, "no weights")
            raise self.failures.pop(0)
        self.fleet.enlist(replica)
        return replica


class Scene:
    """A supervised fleet."""

    def __init__(self, num_actors: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        config = Config(rollout=RolloutConfig(num_actors=num_actors), supervision=replace(SETTINGS, **settings))
        self.board = HealthBoard()
        self.fleet = FakeFleet(config, "model", None, board=self.board, supervised=True)
        self.transport = FakeTransport(self.fleet)
        self.budget = RestartBudget(max_restarts=config.supervision.max_restarts, window_s=60)
        self.supervisor = Supervisor(config, self.fleet, self.transport, self.board, self.budget)  # type: ignore[arg-type]
        self.places = asyncio.Event()
        self.places.set()

        async def ready(_: Any) -> None:
            await self.places.wait()

        async def report(role: str, cause: str, place: Whereabouts | None, **_: Any) -> DeathReport:
            return DeathReport(role=role, cause=cause, pid=place.pid if place else None)

        monkeypatch.setattr(supervision, "_ready", ready)
        monkeypatch.setattr(supervision, "report_death", report)
        monkeypatch.setattr(supervision, "_free_nodes", lambda: [])

    def states(self) -> list[str]:
        return [role.state.value for role in self.board.of(KIND)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


def play(scene: Scene, story: Callable[[Scene], Any]) -> None:
    async def run() -> None:
        await scene.fleet.start(version=0)
        supervising = asyncio.ensure_future(scene.supervisor.run())
        telling = asyncio.ensure_future(story(scene))
        await asyncio.wait({supervising, telling}, return_when=asyncio.FIRST_COMPLETED)
        supervising.cancel()
        if not telling.done():
            telling.cancel()
            supervising.result()
        telling.result()
        await asyncio.gather(supervising, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_board_has_the_version_that_each_replica_says_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        first, second = scene.fleet.replicas
        first.actor.version, second.actor.version = 5, 4
        await scene.until(lambda: [role.version for role in scene.board.of(KIND)] == [5, 4])

    play(Scene(2, monkeypatch), story)


def test_a_dead_actor_is_replaced_in_its_slot_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        first, second = scene.fleet.replicas
        first.actor.dead = True
        await scene.until(lambda: len(scene.fleet.replicas) == 2 and first not in scene.fleet.replicas)
        assert scene.fleet.replicas[0] is second and scene.fleet.replicas[1].slot == first.slot
        assert scene.states() == ["healthy", "healthy"] and scene.board.of(KIND)[0].restarts == 1
        assert [death.pid for death in scene.board.deaths] == [100]
        assert scene.budget.left(KIND) == 3

    play(Scene(2, monkeypatch), story)


@pytest.mark.parametrize("stalls", ["silent", "stopped"])
def test_a_stalled_one_is_suspected_first_and_gets_no_prompts_then_it_is_given_up(monkeypatch: pytest.MonkeyPatch, stalls: str) -> None:
    async def story(scene: Scene) -> None:
        stalled, other = scene.fleet.replicas
        if stalls == "silent":
            stalled.actor.silent = True
        else:
            stalled.actor.engine = "stopped"
        await scene.until(lambda: stalled.suspect)
        assert scene.states() == ["suspect", "healthy"]
        other.running = 100
        assert await scene.fleet.rollout(["a"]) == ["a"] and other.running == 100 and stalled.running == 0  # type: ignore[list-item, comparison-overlap]
        await scene.until(lambda: stalled.lost is not None)
        assert "5 heartbeats of 0.05 s in a row" in str(stalled.lost)
        await scene.until(lambda: len(scene.fleet.replicas) == 2)

    play(Scene(2, monkeypatch), story)


def test_a_suspect_that_answers_again_is_trusted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        (replica,) = scene.fleet.replicas
        replica.actor.engine = "stopped"
        await scene.until(lambda: replica.suspect)
        replica.actor.engine = "running"
        await scene.until(lambda: not replica.suspect)
        assert scene.states() == ["healthy"] and replica.missed == 0 and not scene.fleet.lost

    play(Scene(1, monkeypatch, dead_after=500), story)


def test_an_engine_whose_process_is_gone_costs_its_actor_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        (replica,) = scene.fleet.replicas
        replica.actor.engine = "gone"
        await scene.until(lambda: replica.lost == "its engine's process is gone" and len(scene.fleet.replicas) == 1)

    play(Scene(1, monkeypatch), story)


def test_who_waits_for_a_replica_gets_the_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        for replica in list(scene.fleet.replicas):
            scene.fleet.lose(replica, "killed")
        assert scene.fleet.absences == 1
        assert await scene.fleet.rollout(["a"]) == ["a"]  # type: ignore[list-item, comparison-overlap]

    play(Scene(2, monkeypatch), story)


def test_having_none_is_waited_for_with_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        scene.places.clear()
        scene.fleet.lose(scene.fleet.replicas[0], "killed")
        with pytest.raises(NoReplicaError, match=r"waited 0.4 s for a rollout actor .*rollout actor 0: killed"):
            await scene.fleet.rollout([])
        assert "no rollout actor is in service" in scene.supervisor.notices()[0]

    play(Scene(1, monkeypatch), story)


def test_a_place_that_is_missing_is_told_with_demand_and_supply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "PENDING_NOTICE_S", 0.05)

    async def story(scene: Scene) -> None:
        scene.places.clear()
        scene.supervisor.scale(3)
        await scene.until(lambda: len(scene.supervisor.pending) == 2)
        assert scene.fleet._placed == 3 and scene.supervisor.describe()["starting"] == 2  # one newcomer for each slot
        assert "2 x 1 CPU wanted; free are no nodes" in scene.supervisor.notices()[-1]
        scene.supervisor.scale(1)
        await scene.until(lambda: scene.supervisor.describe() == {"in_service": 1, "target": 1, "starting": 0, "leaving": 0})
        assert scene.supervisor.notices() == [] and scene.states() == ["healthy"]
        assert not scene.fleet.lost and scene.budget.left(KIND) == 4  # those that were not needed any more are no deaths

    play(Scene(1, monkeypatch), story)


def test_scoring_the_probe_ends_with_who_leaves_and_nobody_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        await scene.until(lambda: len(scene.fleet.replicas) == 2)
        scoring = [asyncio.ensure_future(scene.fleet.score(replica, None, [1])) for replica in scene.fleet.replicas]  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        scene.supervisor.scale(1)
        done, _ = await asyncio.wait(scoring, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        (ended,) = done
        assert isinstance(ended.exception(), ReplicaLostError)
        await scene.until(lambda: not scene.fleet.leaving)
        assert scene.fleet.lost == [] and len(scene.fleet.replicas) == 1 and "dead" not in scene.states()
        for one in scoring:
            one.cancel()

    play(Scene(2, monkeypatch), story)


def test_who_leaves_finishes_its_prompts_and_gets_no_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        rolling = asyncio.ensure_future(scene.fleet.rollout(["a"]))  # type: ignore[list-item]
        await asyncio.sleep(0.01)
        idle = scene.fleet.replicas[1]
        scene.supervisor.scale(1)
        await scene.until(lambda: scene.fleet.replicas == [scene.fleet.replicas[0]] and idle.lost is not None)  # the idle one
        scene.supervisor.scale(0)
        await scene.until(lambda: scene.supervisor.describe()["leaving"] == 1)
        assert scene.states() == ["stale"]
        assert await rolling == ["a"]  # type: ignore[comparison-overlap]
        await scene.until(lambda: scene.states() == [])
        scene.supervisor.scale(2)
        await scene.until(lambda: len(scene.fleet.replicas) == 2)

    play(Scene(2, monkeypatch), story)


def test_who_takes_too_long_to_leave_gives_its_prompts_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        rolling = asyncio.ensure_future(scene.fleet.rollout(["a"]))  # type: ignore[list-item]
        await asyncio.sleep(0.01)
        scene.supervisor.scale(0)
        with pytest.raises(ReplicaLostError, match="not needed any more"):
            await rolling

    play(Scene(1, monkeypatch, drain_timeout_s=0.02), story)


def test_replicas_that_never_start_use_up_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        scene.fleet.broken = RuntimeError("no such driver")  # type: ignore[attr-defined]
        scene.supervisor.scale(2)
        await asyncio.sleep(10)

    with pytest.raises(RestartBudgetExceeded, match=r"^rollout actor 1: it did not start: no such driver \(the first of 5"):
        play(Scene(1, monkeypatch), story)


def test_when_the_budget_is_used_up_nobody_who_waits_for_a_replica_fails_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of theirs would come before the cause, and would end the step under way."""
    monkeypatch.setattr(fleet, "SOMEONE_POLL_S", 0.01)

    async def story() -> None:
        scene = Scene(1, monkeypatch, max_restarts=0)
        supervising = asyncio.ensure_future(scene.supervisor.run())
        await scene.until(lambda: len(scene.fleet.replicas) == 1)
        scene.fleet.lose(scene.fleet.replicas[0], "killed")
        waiting = asyncio.ensure_future(scene.fleet.rollout([]))
        with pytest.raises(RestartBudgetExceeded, match=r"^rollout actor 0: killed"):
            await supervising
        await asyncio.sleep(0.05)
        assert not waiting.done()
        scene.fleet.must_have_replicas()  # a version that is on its way is for those who come when the run goes on
        waiting.cancel()

    asyncio.run(story())


def test_a_learner_that_fails_in_a_join_is_not_the_newcomer_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        scene.transport.failures = [LearnerGroupError("rank 0 died")]
        scene.supervisor.scale(2)
        await scene.until(lambda: len(scene.fleet.replicas) == 2)
        assert scene.budget.left(KIND) == 4 and not scene.board.deaths

    play(Scene(1, monkeypatch), story)


@pytest.mark.parametrize("target", [-1, 5000])
def test_a_number_that_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, target: int) -> None:
    with pytest.raises(ValueError, match=f"{target} is no number of rollout actors"):
        Scene(1, monkeypatch).supervisor.scale(target)

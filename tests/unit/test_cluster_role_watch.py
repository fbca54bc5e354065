"""An actor that Ray starts again, as the health board sees it."""

import asyncio

import pytest
from ray.exceptions import ActorUnavailableError

from cluster.health import HealthBoard
from cluster.restarts import RestartBudget, RestartBudgetExceeded
from cluster.role_watch import RoleWatch


def test_each_death_is_reported_once_whether_or_not_it_was_seen():
    board, answers = HealthBoard(), []

    async def ask():
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            await asyncio.sleep(60)
        return {"pid": answer}

    watch = RoleWatch("replay", ask, board, RestartBudget(max_restarts=2, window_s=60), heartbeat_s=0.01, suspect_after=2)

    def states(*said):
        answers[:] = said
        found = []
        for _ in said:
            asyncio.run(watch.beat())
            found.append(board.state_of("replay", 0).value)
        return found

    assert states(7, None, None, None, 7) == ["healthy", "healthy", "suspect", "suspect", "healthy"]
    assert states(8) == ["healthy"]  # it came back between two questions
    assert [(death.pid, death.cause) for death in board.deaths] == [(7, "its process ended, and Ray has started it again")]
    away = ActorUnavailableError("the actor is restarting", None)
    assert states(away, away, 9) == ["restarting", "restarting", "healthy"]
    assert [death.pid for death in board.deaths] == [7, 8]
    with pytest.raises(RestartBudgetExceeded, match=r"^replay actor: its process ended, .* \(the first of 3"):
        states(10)
    assert board.of("replay")[0].restarts == 3

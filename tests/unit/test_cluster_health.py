"""Named states of roles, death reports and the budget of restarts."""

import itertools
import json
import logging

import pytest

from cluster.health import DeathReport, HealthBoard, IllegalTransition, RoleState, may_follow
from cluster.restarts import RestartBudget, RestartBudgetExceeded

S = RoleState


def test_a_dead_role_comes_back_through_restarting_only():
    assert {after for after in S if may_follow(S.dead, after)} == {S.dead, S.restarting}
    assert not may_follow(S.healthy, S.restarting) and not may_follow(S.healthy, S.starting)


def test_every_state_can_be_reached_and_left():
    for state in S:
        assert any(may_follow(state, other) for other in S if other is not state)
    reached = {S.starting}
    for _ in S:
        reached |= {after for before, after in itertools.product(reached, S) if may_follow(before, after)}
    assert reached == set(S)


def test_the_board_tells_observers_and_log_of_each_change_once(caplog: pytest.LogCaptureFixture):
    seen = []
    board = HealthBoard(lambda role, before, after: seen.append((role.name, before, after)))
    with caplog.at_level(logging.INFO):
        board.enter("rollout", 1, S.starting)
        board.enter("rollout", 1, S.healthy, "holds version 3")
        board.enter("rollout", 1, S.healthy, "again")
        board.enter("rollout", 1, S.suspect, "3 missed heartbeats")
    assert seen == [("rollout 1", None, S.starting), ("rollout 1", S.starting, S.healthy), ("rollout 1", S.healthy, S.suspect)]
    assert "rollout 1 is suspect: 3 missed heartbeats" in caplog.text and "again" not in caplog.text
    with pytest.raises(IllegalTransition, match="rollout 1 is suspect and cannot become restarting"):
        board.enter("rollout", 1, S.restarting)
    board.enter("rollout", 1, S.dead)
    board.enter("rollout", 1, S.restarting)
    (row,) = board.as_list()
    assert row["state"] == "restarting" and row["restarts"] == 1 and json.dumps(row)
    board.forget("rollout", 1)
    assert seen[-1] == ("rollout 1", S.restarting, None)
    assert board.as_list() == [] and board.state_of("rollout", 1) is None


def test_the_board_tells_which_weights_a_role_holds_until_it_dies():
    seen = []
    board = HealthBoard(lambda role, before, after: seen.append((role.version, before, after)))
    board.holds("rollout", 0, 1)  # nobody knows it
    board.enter("rollout", 0, S.healthy)
    for version in (None, 3, 3, 4):
        board.holds("rollout", 0, version)
    assert seen[1:] == [(3, S.healthy, S.healthy), (4, S.healthy, S.healthy)]
    assert board.as_list()[0]["version"] == 4
    board.enter("rollout", 0, S.dead)
    assert board.as_list()[0]["version"] is None and seen[-1] == (None, S.healthy, S.dead)


def test_a_death_report_says_who_where_why_and_the_last_words():
    death = DeathReport(role="rollout actor 1", cause="killed by SIGKILL", node="10.0.0.7", pid=42, last_log_lines=("a", "b"), time=1.0)
    assert death.headline() == "rollout actor 1 (pid 42 on 10.0.0.7) died: killed by SIGKILL"
    assert death.text().splitlines()[1:] == ["    a", "    b"]
    assert json.loads(json.dumps(death.as_dict()))["last_log_lines"] == ["a", "b"]
    assert DeathReport(role="replay", cause="gone").headline() == "replay died: gone"


def test_the_budget_bounds_a_window_and_tells_the_first_cause():
    now = [0.0]
    budget = RestartBudget(max_restarts=2, window_s=10, clock=lambda: now[0])
    budget.spend("rollout", "disk full")
    now[0] = 9.0
    budget.spend("rollout", "port taken")
    assert budget.left("rollout") == 0 and budget.left("replay") == 2
    budget.spend("replay", "of its own kind")
    with pytest.raises(RestartBudgetExceeded, match=r"^disk full \(the first of 3 rollout failures within 10 s.*the latest: killed"):
        budget.spend("rollout", "killed")
    now[0] = 10.0  # the first one is out of the window
    budget.spend("rollout", "killed")
    with pytest.raises(RestartBudgetExceeded, match=r"^port taken"):
        budget.spend("rollout", "killed again")


def test_a_budget_of_none_stops_at_the_first_death():
    with pytest.raises(RestartBudgetExceeded, match=r"^killed \(the first of 1 rollout"):
        RestartBudget(max_restarts=0, window_s=10).spend("rollout", "killed")

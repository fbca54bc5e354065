"""Gauges of the roles' states and versions."""

from cluster import metrics
from cluster.health import HealthBoard, RoleState


def test_gauges_follow_state_and_version(monkeypatch):
    values = {}

    class FakeGauge:
        def __init__(self, name, description, tag_keys):
            self.name, self.tag_keys = name, tag_keys

        def set(self, value, tags):
            assert set(tags) == set(self.tag_keys)
            values[self.name.removeprefix("rethinker_role_"), tags.get("state")] = value

    monkeypatch.setattr(metrics, "Gauge", FakeGauge)
    board = HealthBoard(metrics.StateGauges("mine"))
    board.enter("rollout", 0, RoleState.healthy)
    assert values == {("state", "healthy"): 1.0}
    board.holds("rollout", 0, 3)
    assert values == {("state", "healthy"): 1.0, ("version", None): 3}
    board.enter("rollout", 0, RoleState.suspect)
    assert values == {("state", "healthy"): 0.0, ("state", "suspect"): 1.0, ("version", None): 3}
    board.enter("rollout", 0, RoleState.dead)
    assert values["version", None] == -1
    board.enter("rollout", 0, RoleState.restarting)
    board.enter("rollout", 0, RoleState.healthy)
    board.holds("rollout", 0, 4)
    assert values["version", None] == 4
    board.forget("rollout", 0)
    assert values["version", None] == -1 and not any(value for (name, _), value in values.items() if name == "state")

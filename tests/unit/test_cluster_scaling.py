"""The rule by which a run scales itself."""

import pytest

from cluster.scaling import ScalingPolicy, wanted


@pytest.mark.parametrize(
    ("serving", "waited", "busy", "expected"),
    [
        (2, 0.5, 1.0, 3),  # starved
        (4, 0.9, 1.0, 4),  # starved, and as many as there may be
        (2, 0.1, 0.2, 2),  # it waits a little: not certain of the slack
        (2, 0.0, 0.4, 1),  # 2 x 0.4 < 0.9 x 1
        (2, 0.0, 0.5, 2),  # 2 x 0.5 > 0.9 x 1: one alone would be busy all the time
        (4, 0.0, 0.6, 3),  # 4 x 0.6 < 0.9 x 3
        (4, 0.0, 0.7, 4),
        (1, 0.0, 0.1, 1),  # the last one isn't let go for having little to do
        (0, 0.9, 0.0, 1),
        (9, 0.0, 1.0, 4),  # more than there may be
    ],
)
def test_starvation_adds_one_and_overflow_lets_one_go(serving: int, waited: float, busy: float, expected: int):
    assert wanted(serving=serving, low=1, high=4, waited=[waited] * 3, busy=[busy] * 3) == expected


def test_one_odd_step_changes_nothing():
    assert wanted(serving=2, low=1, high=4, waited=[0.0, 0.0, 0.9], busy=[1.0, 1.0, 0.0]) == 2


def test_it_never_turns_back_at_once():
    """What is let go would leave the others with a tenth of slack, so that the next window does not ask for it again."""
    for serving in range(2, 50):
        busy = 0.89 * (serving - 1) / serving
        assert wanted(serving=serving, low=0, high=100, waited=[0.0], busy=[busy]) == serving - 1
        assert busy * serving / (serving - 1) < 0.9


def metrics(waited: float, busy: float) -> dict[str, float]:
    return {"time/step_s": 10.0, "time/replay_wait_s": 10 * waited, "time/rollout_s": 10 * busy}


def test_a_window_begins_anew_with_each_change():
    policy = ScalingPolicy(low=1, high=8, window_steps=2)
    starved = metrics(0.8, 1.0)
    assert policy.observe(starved, serving=2, settled=True) is None  # the number is new to it
    assert policy.observe(starved, serving=2, settled=True) is None
    assert policy.observe(starved, serving=2, settled=True) == 3
    assert policy.observe(starved, serving=2, settled=False) is None  # the third is starting
    assert policy.observe(starved, serving=3, settled=True) is None
    assert policy.observe(metrics(0.0, 1.0), serving=3, settled=True) is None
    assert policy.observe(metrics(0.0, 1.0), serving=3, settled=True) == 3

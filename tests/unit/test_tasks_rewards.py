import pytest

from tasks.rewards import reward


@pytest.mark.parametrize(
    ("correct", "finish_reason", "expected"),
    [(True, "stop", 1.0), (False, "stop", 0.0), (True, "length", -0.1), (False, "length", -0.1)],
)
def test_reward(correct, finish_reason, expected):
    assert reward(correct=correct, finish_reason=finish_reason, invalid_reward=-0.1) == expected

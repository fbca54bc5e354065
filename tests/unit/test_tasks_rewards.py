import pytest

from tasks.rewards import reward


@pytest.mark.parametrize(
    ("correct", "finish_reason", "expected"),
    [(True, "stop", 1.0), (False, "stop", 0.0), (True, "length", -0.1), (False, "length", -0.1)],
)
def test_reward(correct, finish_reason, expected):
    assert reward(correct=correct, finish_reason=finish_reason, invalid_reward=-0.1) == expected


def test_partial_credit_is_the_reward_of_an_answer_that_is_not_right():
    assert reward(correct=False, finish_reason="stop", invalid_reward=-0.1, credit=0.25) == 0.25
    assert reward(correct=True, finish_reason="stop", invalid_reward=-0.1, credit=1.0) == 1.0
    assert reward(correct=False, finish_reason="length", invalid_reward=-0.1, credit=0.25) == -0.1

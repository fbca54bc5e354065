import pytest

from learner.schedule import learning_rate

RATE = {"peak": 2.0, "num_steps": 11, "warmup_fraction": 0.0, "min_ratio": 0.5}


def test_a_cosine_from_the_peak_to_the_share() -> None:
    # Halfway (step 5 of 0..10) the cosine is 0: 2 * (0.5 + 0.5 * 0.5).
    rates = [learning_rate(step, **RATE) for step in range(11)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(1.5)
    assert rates[10] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)


def test_warm_up_moves_from_the_first_step_and_reaches_the_peak() -> None:
    # 30 % of 10 steps: 1/3, 2/3, 3/3 of the peak; the cosine starts there.
    rates = [learning_rate(step, peak=3.0, num_steps=10, warmup_fraction=0.3, min_ratio=0.0) for step in range(10)]
    assert rates[:4] == pytest.approx([1.0, 2.0, 3.0, 3.0])
    assert rates[9] == pytest.approx(0.0)


def test_past_the_end_the_last_rate_holds() -> None:
    assert learning_rate(50, **RATE) == pytest.approx(1.0)


def test_one_step_has_the_peak() -> None:
    assert learning_rate(0, peak=1.0, num_steps=1, warmup_fraction=0.03, min_ratio=0.1) == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"step": -1}, "step -1"), ({"num_steps": 0}, "num_steps 0"), ({"warmup_fraction": 1.0}, "1.0"), ({"min_ratio": 2.0}, "2.0")],
)
def test_numbers_out_of_range_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_rate(**{"step": 0, **RATE, **wrong})

import dataclasses
from collections import Counter

import numpy as np
import pytest

from algorithms.rethinking import (
    PAPER_CODE,
    Decision,
    FirstResponse,
    Recipe,
    RethinkingCounts,
    SecondResponse,
    Trigger,
    accept,
    count_waits,
    cut_before_answer,
    decide,
    draw_trigger,
    rethinks,
    transition,
)

VERIFY = Trigger(text=" Wait, let me check.", category="self_verification", weight=3.0)
QUESTION = Trigger(text=" Wait, is it right?", category="self_questioning", weight=1.0)
BLIND = Recipe(fraction=0.5, triggers=(VERIFY, QUESTION))
NUM = 4000


def first(*, num_tokens: int = 20, finished: bool = True, correct: bool = True) -> FirstResponse:
    return FirstResponse(num_tokens=num_tokens, finished=finished, correct=correct)


def second(*, num_tokens: int = 40, correct: bool = True, text: str = "so it is 8.") -> SecondResponse:
    return SecondResponse(num_tokens=num_tokens, correct=correct, text=text)


def decisions(recipe: Recipe, response: FirstResponse, *, group_accuracy: float = 0.5) -> list[Decision | str]:
    return [decide(response, recipe, group_accuracy=group_accuracy, seed=seed, index=seed % 8) for seed in range(NUM)]


def share(values: list, wanted: object) -> float:
    return sum(value == wanted for value in values) / len(values)


def within(probability: float, number: int = NUM) -> float:
    """Four standard deviations of a share."""
    return 4 * np.sqrt(probability * (1 - probability) / number)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_fraction_of_the_responses_goes_on(fraction: float) -> None:
    made = decisions(dataclasses.replace(BLIND, fraction=fraction), first())
    assert 1 - share(made, "not_drawn") == pytest.approx(fraction, abs=within(fraction))


def test_decisions_are_those_of_the_seed_and_the_index() -> None:
    one = [decide(first(), BLIND, group_accuracy=0.5, seed=7, index=index) for index in range(50)]
    assert one == [decide(first(), BLIND, group_accuracy=0.1, seed=7, index=index) for index in range(50)]
    assert one != [decide(first(), BLIND, group_accuracy=0.5, seed=8, index=index) for index in range(50)]
    seeds = [decision.seed for decision in one if isinstance(decision, Decision)]
    assert len(set(seeds)) == len(seeds) > 10


def test_the_blind_choice_does_not_see_the_gold_answer() -> None:
    assert decisions(BLIND, first(correct=True), group_accuracy=1.0) == decisions(BLIND, first(correct=False), group_accuracy=0.0)


def test_triggers_are_drawn_by_weight() -> None:
    texts = Counter(d.trigger.text for d in decisions(dataclasses.replace(BLIND, fraction=1.0), first()) if isinstance(d, Decision))
    assert texts[VERIFY.text] / NUM == pytest.approx(0.75, abs=within(0.75))


def test_a_draw_at_the_edges_finds_a_trigger() -> None:
    assert draw_trigger((VERIFY, QUESTION), 0.0, correct=True) == VERIFY
    assert draw_trigger((VERIFY, QUESTION), 0.75, correct=True) == QUESTION
    assert draw_trigger((VERIFY, QUESTION), np.nextafter(1.0, 0.0), correct=True) == QUESTION
    with pytest.raises(ValueError, match="no trigger may follow a wrong"):
        draw_trigger((dataclasses.replace(VERIFY, only_after=True),), 0.5, correct=False)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (first(finished=False), "unfinished"),
        (first(num_tokens=0), "empty"),
        (first(num_tokens=11), "too_long"),
        (first(correct=False), "wrong_in_easy_group"),
    ],
)
def test_who_is_passed_over_is_told_why(response: FirstResponse, reason: str) -> None:
    recipe = dataclasses.replace(BLIND, fraction=1.0, max_y1_tokens=10, skip_wrong_above=0.7)
    response = response if reason == "too_long" else dataclasses.replace(response, num_tokens=min(response.num_tokens, 10))
    assert set(decisions(recipe, response, group_accuracy=0.75)) == {reason}


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("It is 8. \\boxed{8}", "It is 8. "),
        ("Two boxes \\boxed{1} and \\boxed{8} end", "Two boxes \\boxed{1} and "),
        ("First 3.\n\nWait, no. \\boxed{8}", "First 3."),
        ("a \\boxed{1} Wait, b Wait, c \\boxed{2}", "a "),  # before the last "Wait", then before the last box of what is left
        ("Work. The Answer is 8, an answer.", "Work. The "),
        ("Step one.  \n\nStep two: \\boxed{8}", "Step one."),
        ("nothing to cut", "nothing to cut"),
        ("\\boxed{8}", ""),
        ("", ""),
    ],
)
def test_the_cut_before_the_answer(text: str, rest: str) -> None:
    assert cut_before_answer(text) == rest


class TestPaperCode:
    """Each row of the table in docs/rethinking.md."""

    def test_eligible(self) -> None:
        assert "too_long" not in decisions(PAPER_CODE, first(num_tokens=1024))
        assert set(decisions(PAPER_CODE, first(num_tokens=1025))) == {"too_long"}
        assert set(decisions(PAPER_CODE, first(finished=False))) == {"unfinished"}
        assert set(decisions(PAPER_CODE, first(correct=False), group_accuracy=0.75)) == {"wrong_in_easy_group"}
        assert "wrong_in_easy_group" not in decisions(PAPER_CODE, first(correct=False), group_accuracy=0.7)
        assert "wrong_in_easy_group" not in decisions(PAPER_CODE, first(correct=True), group_accuracy=0.75)

    def test_attempted(self) -> None:
        assert share(decisions(PAPER_CODE, first()), "not_drawn") == pytest.approx(0.35, abs=within(0.35))

    def test_y1_edit(self) -> None:
        cuts = [decision.cut for decision in decisions(PAPER_CODE, first()) if isinstance(decision, Decision)]
        assert np.mean(cuts) == pytest.approx(0.5, abs=within(0.5, len(cuts)))

    @pytest.mark.parametrize(
        ("correct", "leaking"), [(True, "\n\nWait, let's double check"), (False, "\n\nWait, there might be a mistake")]
    )
    def test_triggers_leak_the_label(self, correct: bool, leaking: str) -> None:
        texts = [d.trigger.text for d in decisions(PAPER_CODE, first(correct=correct)) if isinstance(d, Decision)]
        expected = {"\n\nWait": 0.2, "\n\nWait, does it seem right?": 0.3, leaking: 0.5}
        assert set(texts) == set(expected)
        for text, probability in expected.items():
            assert share(texts, text) == pytest.approx(probability, abs=within(probability, len(texts)))

    def test_y2(self) -> None:
        assert PAPER_CODE.temperature == 0.9
        lengths = [second(num_tokens=number) for number in (30, 31)]
        assert accept(lengths, PAPER_CODE) == ["length", None]
        lengths = [second(num_tokens=number) for number in (1023, 1024)]
        assert accept(lengths, PAPER_CODE) == [None, "length"]
        assert accept([second(correct=False)], PAPER_CODE) == ["wrong"]
        assert accept([second(), second(correct=False), second(), second()], PAPER_CODE) == [None, "wrong", None, "enough_for_prompt"]
        assert accept([second(text="Wait, a. Wait a bit. Alternatively, b.")], PAPER_CODE) == [None]  # 4 with the trigger's
        assert accept([second(text="Wait, wait, wait, wait, no.")], PAPER_CODE) == ["too_many_waits"]

    def test_a_y2_of_too_many_waits_uses_up_a_place(self) -> None:
        many = second(text="wait, " * 9)
        assert accept([many, second(), second()], PAPER_CODE) == ["too_many_waits", None, "enough_for_prompt"]


def test_by_default_every_y2_is_kept() -> None:
    seconds = [second(num_tokens=1), second(correct=False), second(text="wait, " * 50), second(), second()]
    assert accept(seconds, BLIND) == [None] * 5
    assert accept([], BLIND) == []


def test_waits_are_counted_as_the_code_counts_them() -> None:
    assert count_waits("WAIT, and wait a moment. Alternatively await nothing; wait.") == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The sum is 8. Wait, let me see", True),
        ("wait", True),
        ("long awaited waiting", False),
        ("Let me CHECK it", True),
        ("hmm... no", True),
        ("hmm no", False),
        ("", False),
    ],
)
def test_a_response_that_rethinks_by_itself(text: str, found: bool) -> None:
    assert rethinks(text, ("wait", "let me check", "...")) is found


def test_the_cells() -> None:
    cells = {(before, after): transition(before=before, after=after) for before in (True, False) for after in (True, False)}
    assert cells == {
        (True, True): "right_to_right",
        (True, False): "right_to_wrong",
        (False, True): "wrong_to_right",
        (False, False): "wrong_to_wrong",
    }


def test_counts_add_and_become_metrics() -> None:
    one = RethinkingCounts(
        rollouts=8,
        spontaneous=1,
        forced=4,
        kept=3,
        extra_tokens=50,
        transitions=Counter(wrong_to_right=2, right_to_wrong=1, right_to_right=1),
        skipped=Counter(unfinished=1),
        dropped=Counter(wrong=1),
    )
    two = RethinkingCounts(rollouts=8, skipped=Counter(unfinished=2))
    assert (one + two).metrics() == {
        "rethinking/forced_fraction": 0.25,
        "rethinking/spontaneous_ratio": 1 / 16,
        "rethinking/kept_fraction": 0.75,
        "rethinking/right_to_right": 0.25,
        "rethinking/right_to_wrong": 0.25,
        "rethinking/wrong_to_right": 0.5,
        "rethinking/wrong_to_wrong": 0.0,
        "rethinking/extra_tokens": 50.0,
        "rethinking/skipped/unfinished": 3.0,
        "rethinking/dropped/wrong": 1.0,
    }
    assert RethinkingCounts().metrics() == {"rethinking/extra_tokens": 0.0}

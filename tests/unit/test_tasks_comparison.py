"""Each answer type, in both halves: what is decided on the spot, and what a grader process has to compute."""

import pytest

from algorithms.types import AnswerType
from tasks.comparison import ScoreError, check_answer, compare, decide
from tasks.errors import DataError

CHOICE = AnswerType(kind="choice", options=("0.5", "\\frac{1}{3}", "none", "\\sqrt{2}"))
LETTERS = AnswerType(kind="choice")
CENTIMETRES = AnswerType(kind="number", unit="cm", relative_tolerance=0.01)
NUMBER = AnswerType(kind="number", absolute_tolerance=0.005)


def score(candidate, gold, answer_type, form="boxed"):
    """Both halves, as a pool joins them."""
    decided = decide(candidate, gold, answer_type, form=form)
    return compare(candidate, gold, answer_type, form=form) if decided is None else decided


@pytest.mark.parametrize(
    ("candidate", "gold", "answer_type", "expected"),
    [
        ("A", "A", CHOICE, 1),
        ("(a)", "A", CHOICE, 1),
        ("B", "A", CHOICE, 0),
        ("0.5", "A", CHOICE, 1),
        ("\\frac{1}{2}", "A", CHOICE, 1),
        ("\\dfrac{2}{6}", "B", CHOICE, 1),
        ("\\frac{2}{\\sqrt{2}}", "D", CHOICE, 1),
        ("0.4", "A", CHOICE, 0),
        ("none", "C", CHOICE, 1),
        ("None.", "C", CHOICE, 1),
        ("something", "C", CHOICE, 0),
        ("E", "A", CHOICE, 0),
        ("A", "0.5", CHOICE, 1),
        ("K", "K", LETTERS, 1),
        ("k", "K", LETTERS, 1),
        ("A", "unreadable", CHOICE, 0),
        ("5", "5", CENTIMETRES, 1),
        ("5.04 cm", "5", CENTIMETRES, 1),
        ("0.0504 m", "5", CENTIMETRES, 1),
        ("5.06", "5", CENTIMETRES, 0),
        ("5 kg", "5", CENTIMETRES, 0),
        ("no idea", "5", CENTIMETRES, 0),
        ("\\sqrt{2}", "1.41", NUMBER, 1),
        ("\\frac{\\pi}{2}", "1.57", NUMBER, 1),
        ("x = \\sqrt{2}", "1.41", NUMBER, 1),
        ("1.42", "\\sqrt{2}", NUMBER, 0),
        ("1.41", "\\sqrt{2}", NUMBER, 1),
        ("\\sqrt{-1}", "1", NUMBER, 0),
        ("\\frac{1}{2}", "0.5", AnswerType(), 1),
    ],
)
def test_scores(candidate, gold, answer_type, expected):
    assert score(candidate, gold, answer_type) == expected


@pytest.mark.parametrize(
    ("candidate", "gold", "answer_type", "form", "expected"),
    [
        ("It can't be A, the answer is (C)", "C", CHOICE, "running", 1),
        ("so it is none", "C", CHOICE, "running", 1),
        ("the second one, B I think", "B", CHOICE, "marked", 1),
        ("the sum is 5 cm", "5", CENTIMETRES, "running", 1),
        ("3, no, 4", "5", CENTIMETRES, "running", 0),
        ("the sum is 5 cm", "5", CENTIMETRES, "boxed", 0),
    ],
)
def test_answers_outside_of_a_box(candidate, gold, answer_type, form, expected):
    assert score(candidate, gold, answer_type, form) == expected


def test_most_answers_need_no_process():
    for candidate, gold, answer_type in [
        ("B", "A", CHOICE),
        ("none", "A", CHOICE),
        ("5 cm", "5", CENTIMETRES),
        ("yes", "no", AnswerType()),
    ]:
        assert decide(candidate, gold, answer_type, form="boxed") is not None


@pytest.mark.parametrize(
    ("gold", "answer_type", "reason"),
    [
        ("Q", CHOICE, "none of the 4 options"),
        ("five", NUMBER, "no number"),
        ("1", AnswerType(kind="scored"), "without a scorer"),
        ("1", AnswerType(kind="scored", scorer="a.b", data="{"), "Expecting"),
    ],
)
def test_a_gold_answer_of_the_wrong_type_is_refused(gold, answer_type, reason):
    with pytest.raises(ValueError, match=reason):
        check_answer(gold, answer_type)
    check_answer("\\sqrt{2}", NUMBER)
    check_answer("b", CHOICE)


def overlap(candidate, gold, data):
    return len(set(candidate) & set(gold)) / data["of"]


def nonsense(candidate, gold, data):
    return {"text": "much", "nan": float("nan"), "high": 2, "none": None}[candidate]


def test_a_user_s_function_scores(monkeypatch):
    monkeypatch.syspath_prepend("tests/unit")
    name = "test_tasks_comparison"
    answer_type = AnswerType(kind="scored", scorer=f"{name}.overlap", data='{"of": 4}')
    assert decide("abcd", "abcd", answer_type, form="boxed") is None
    assert compare("abcd", "abxx", answer_type, form="boxed") == 0.5
    for candidate in ("text", "nan", "high", "none"):
        with pytest.raises(ScoreError):
            compare(candidate, "", AnswerType(kind="scored", scorer=f"{name}.nonsense"), form="boxed")
    for scorer, reason in [
        ("nowhere.at_all", "can't be imported"),
        (f"{name}.missing", "names no function"),
        ("plain", "no dotted path"),
        ("os.path", "can't be imported|names no function"),
    ]:
        with pytest.raises(DataError, match=reason):
            compare("1", "1", AnswerType(kind="scored", scorer=scorer), form="boxed")

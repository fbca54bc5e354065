import time

import pytest

from tasks.extraction import lenient_candidates, strict_answer, unboxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{42}.", "42"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a \\boxed{b}}", "b"),
        ("\\boxed {5}", "5"),
        ("x\\\\\\boxed{5}", "5"),
        ("\\\\boxed{5}", "5"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{unclosed \\boxed{3}", "3"),
        ("} \\boxed{3}", "3"),
        ("{{{ \\boxed{3}", "3"),
        ("\\boxed{1} \\boxed{}", None),
        ("\\boxed{  }", None),
        ("\\boxed{1", None),
        ("\\boxed 5", None),
        ("42", None),
        ("", None),
        ("\\boxed{\0\u0663}", "\0\u0663"),
    ],
)
def test_strict_answer(text, answer):
    assert strict_answer(text) == answer


def test_lenient_candidates_come_in_order_of_trust():
    text = "<answer> a </answer> Answer: b\nand <answer>c</answer> \\boxed{d}"
    assert lenient_candidates(text) == ["d", "a", "b", text]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("**Answer:** 5 apples\nThanks", "5 apples"),
        ("answer: 1\nFINAL ANSWER : (B)", "(B)"),
        ("<answer>7</answer>", "7"),
        ("<answer>7", "<answer>7"),
        ("It is 5", "It is 5"),
        ("Answer:\nfive", "Answer:\nfive"),
        ("", None),
        ("  ", None),
    ],
)
def test_lenient_first_candidate(text, first):
    assert (lenient_candidates(text) or [None])[0] == first


def test_only_the_end_of_a_long_response_counts_as_a_whole():
    assert lenient_candidates("x" * 5000 + "5") == ["x" * 999 + "5"]


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "\\boxed{}",
        "\\boxed",
        "\\boxed   ",
        "\\",
        "\\\\",
        "\\frac{",
        "<answer>",
        "</answer>",
        "Answer:",
        "answer   ",
        "\0",
        " ",
    ],
)
def test_a_megabyte_of_anything_takes_linear_time(piece):
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    strict_answer(text)
    lenient_candidates(text)
    assert time.process_time() - start < 3.0  # about 0.3 s; a quadratic scan would take minutes


def test_unboxed():
    assert unboxed("\\boxed{\\text{yes}}") == "\\text{yes}"
    assert unboxed(" 42 ") == "42"
    for bad in ("\\boxed{1", "\\boxed{{1}", "\\boxed{1}}"):
        with pytest.raises(ValueError, match="unbalanced"):
            unboxed(bad)
    with pytest.raises(ValueError, match="nothing"):
        unboxed("\\boxed{ }")

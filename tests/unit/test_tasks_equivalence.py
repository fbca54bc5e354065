import random

import pytest

from tasks.equivalence import choice_letter, equivalent, normalized, shortcut

NUMBERS = [
    "0",
    "-0",
    "5",
    "+5",
    "-5",
    "05",
    "5.0",
    "5.00",
    "0.5",
    ".5",
    "-.5",
    "0.50",
    "12",
    "120",
    "1.2",
    "0.333333",
    "0.33333",
    "3.14",
    "999999",
]
WORDS = [
    *["yes", "Yes", "YES", "no", "on", "blue", "Blue", "teal", "late", "circle", "redcircle", "true", "True", "none"],
    "red circle",
    "Red Circle",
]
CHOICES = ["A", "B", "C", "(B)", "b", "(c)"]


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        ("42", "42"),
        (" 42. ", "42"),
        ("$42$", "42"),
        ("$\\text{yes}.$", "yes"),
        ("\\(x\\)", "x"),
        ("\\text{Yes}", "Yes"),
        ("$5", "$5"),
        ("$a$ and $b$", "$a$ and $b$"),
        ("\\text{a}\\text{b}", "\\text{a}\\text{b}"),
        (".", "."),
        ("$$", ""),
    ],
)
def test_normalized(answer, bare):
    assert normalized(answer) == bare


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("(B).", "B"),
        ("B)", "B"),
        ("Option B", "B"),
        ("choice (b)", "B"),
        ("B. 5 cm", "B"),
        ("B: blue", "B"),
        ("(B) blue", "B"),
        ("A circle", None),
        ("AB", None),
        ("B5", None),
        ("Z", None),
        ("5", None),
    ],
)
def test_choice_letter(answer, letter):
    assert choice_letter(answer, with_text=True) == letter


def test_shortcuts_never_disagree_with_math_verify():
    rng = random.Random(0)
    numbers = NUMBERS + [f"{rng.randint(-50, 50)}" for _ in range(10)] + [f"{rng.uniform(-9, 9):.{rng.randint(1, 6)}f}" for _ in range(10)]
    pairs = [(a, b) for group in (numbers, WORDS, CHOICES) for a in group for b in group]
    pairs += [(a, b) for a in rng.sample(numbers, 12) for b in WORDS + CHOICES]
    pairs += [(b, a) for a, b in rng.sample(pairs, 100)]
    decided = 0
    for candidate, gold in pairs:
        quick = shortcut(candidate, gold)
        if quick is None:
            continue
        decided += 1
        letter = choice_letter(gold, with_text=False)
        # math-verify's own word for a letter is the bare letter; its parser takes "(B)" for a product.
        slow = equivalent(choice_letter(candidate, with_text=True) or candidate, letter or gold, whole_response=False)
        assert quick == slow, (candidate, gold, quick, slow)
    assert decided > 1000


def test_words_are_not_products_of_letters():
    assert shortcut("on", "no") is False
    assert shortcut("late", "teal") is False
    assert not equivalent("on", "no", whole_response=False)


@pytest.mark.parametrize(
    ("candidate", "gold"),
    [
        ("1/2", "0.5"),
        ("x", "x+0"),
        ("50\\%", "0.5"),
        ("1,234", "1234"),
        ("pi", "3.14159265"),
        ("5 cm", "5"),
        ("5 cm", "B"),
        ("\u0663", "3"),
    ],
)
def test_no_shortcut_where_algebra_is_needed(candidate, gold):
    assert shortcut(candidate, gold) is None


@pytest.mark.parametrize(
    ("candidate", "gold", "same"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("\\{2, 1\\}", "\\{1, 2\\}", True),
        ("x=5", "5", True),
        ("1,234", "1234", True),
        ("\u0663", "3", False),
        ("}{", "3", False),
        ("", "3", False),
    ],
)
def test_math_verify(candidate, gold, same):
    assert equivalent(candidate, gold, whole_response=False) is same


@pytest.mark.parametrize(
    ("candidate", "gold", "same"),
    [("so the total is 42", "42", True), ("The answer is B", "B", True), ("The answer is C", "B", False), ("no idea", "42", False)],
)
def test_answers_in_running_text(candidate, gold, same):
    assert equivalent(candidate, gold, whole_response=True) is same

import pytest

from tasks.choices import gold_index, index_in_text, letter_index, option_indices

COLOURS = ("red", "Blue", "\\text{green}", "")


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("A", 0),
        ("b", 1),
        ("(C)", 2),
        ("(c).", 2),
        ("[D]", 3),
        ("B)", 1),
        ("B:", 1),
        ("Option B", 1),
        ("choice (b)", 1),
        ("Answer: C", 2),
        ("B. Blue", 1),
        ("(B) Blue", 1),
        ("E", None),
        ("AB", None),
        ("A circle", None),
        ("B5", None),
        ("4", None),
        ("", None),
    ],
)
def test_letter_index(answer, index):
    assert letter_index(answer, 4) == index


def test_letters_end_with_the_options_or_the_alphabet():
    assert letter_index("L", 12) == 11
    assert letter_index("L", 11) is None
    assert letter_index("Z", 0) == 25


@pytest.mark.parametrize(
    ("answer", "found"), [("blue", {1}), ("  Blue. ", {1}), ("green", {2}), ("$\\text{Green}$", {2}), ("grey", set()), ("", set())]
)
def test_an_option_s_text_names_it(answer, found):
    assert option_indices(answer, COLOURS) == found


def test_repeated_options_are_all_found():
    assert option_indices("5", ("5", "6", "5")) == {0, 2}


@pytest.mark.parametrize(("gold", "index"), [("B", 1), ("b", 1), ("(C)", 2), ("blue", 1), ("green", 2)])
def test_gold_index(gold, index):
    assert gold_index(gold, COLOURS) == index


@pytest.mark.parametrize(("gold", "options"), [("E", COLOURS), ("grey", COLOURS), ("", COLOURS), ("blue", ())])
def test_a_gold_answer_that_is_no_option_is_an_error(gold, options):
    with pytest.raises(ValueError, match="is none of the"):
        gold_index(gold, options)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("A is wrong, so the answer is (B)", 1),
        ("The correct option is **C**.", 2),
        ("First (A), then rather (D)", 3),
        ("A quick look says: B", 1),
        ("I think it must be B because of A's shape", 1),
        ("It is blue", 1),
        ("It is a shade of green.", 2),
        ("It is red or blue", None),
        ("I have no idea", None),
        ("Answer A circle is E", 0),
        ("", None),
    ],
)
def test_the_choice_that_running_text_ends_with(text, index):
    assert index_in_text(text, COLOURS) == index


def test_an_article_is_no_choice():
    assert index_in_text("I see A red and a blue thing", ("one", "two")) is None

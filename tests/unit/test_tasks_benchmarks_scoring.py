"""Scores by rules: the gold answer always scores, and each benchmark's traps are decided as its rules say."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from algorithms.types import AnswerType
from tasks.benchmarks import BENCHMARKS
from tasks.benchmarks.megabench_metrics import METRICS
from tasks.benchmarks.questions import AnswerForm, Guess, Question, Score
from tasks.benchmarks.reading import read_questions
from tasks.benchmarks.scoring import score_answer
from tasks.grading import GraderPool
from tests.benchmark_fixtures import WRITERS


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    pool = GraderPool(processes=1, timeout_s=10.0, memory_bytes=2**31)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[GraderPool]:
    pool = GraderPool(processes=1, timeout_s=0.5, memory_bytes=2**31)
    yield pool
    pool.close()


def ask(question: Question, response: str, pool: GraderPool, *, guess: bool = False, form: AnswerForm | None = None) -> Score:
    return asyncio.run(score_answer(question, response, pool, form=form or question.form, guess=guess))


def choice(*options: str, gold: str = "B", form: AnswerForm = AnswerForm.boxed, guess: Guess = Guess.none) -> Question:
    kind = AnswerType(kind="choice", options=options)
    return Question(question_id="q", body="?", own_prompt="?", answer_type=kind, gold=(gold,), form=form, guess=guess)


def free(*golds: str, form: AnswerForm = AnswerForm.any) -> Question:
    return Question(question_id="q", body="?", own_prompt="?", gold=golds, form=form)


def number(gold: str, decimals: int | None = None) -> Question:
    kind = AnswerType(kind="number", decimals=decimals)
    return Question(question_id="q", body="?", own_prompt="?", answer_type=kind, gold=(gold,), form=AnswerForm.any)


def written(form: AnswerForm, answer: str) -> str:
    return f"So it is.\nAnswer: {answer}" if form is AnswerForm.line else f"So it is \\boxed{{{answer}}}."


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "megabench"])
def test_the_gold_answer_scores_in_full_and_another_one_nothing(name: str, tmp_path: Path, pool: GraderPool) -> None:
    located = read_questions(BENCHMARKS[name], WRITERS[name](tmp_path)).questions
    for question in (item.question for item in located):
        score = ask(question, written(question.form, question.gold[0]), pool)
        if question.unscorable or "sentence" in score.not_scored:
            assert score.strict is None and score.lenient is None and score.not_scored
            continue
        assert (score.strict, score.lenient) == (1.0, 1.0), (question, score)
        wrong = "Z" if question.answer_type.kind == "choice" else "123456.7"
        assert (ask(question, written(question.form, wrong), pool).lenient) == 0.0, question


@pytest.mark.parametrize(
    ("response", "strict", "lenient"),
    [
        ("\\boxed{B}", 1, 1),
        ("\\boxed{\\text{B}}", 1, 1),
        ("\\boxed{(b)}", 1, 1),
        ("\\boxed{B. blue}", 1, 1),
        ("\\boxed{blue}", 1, 1),
        ("First \\boxed{A}, no: \\boxed{B}", 1, 1),
        ("\\boxed{A}", 0, 0),
        ("\\boxed{Apple}", 0, 0),
        ("\\boxed{A} although the answer is B", 0, 0),
        ("Answer: B", 0, 1),
        ("**Answer:** (B) blue", 0, 1),
        ("The correct answer is B.", 0, 1),
        ("A blue one can be seen, so I take option B", 0, 1),
        ("It must be blue", 0, 1),
        ("It is red or blue", 0, 0),
        ("A long day", 0, 0),
        ("", 0, 0),
    ],
)
def test_multiple_choice(response: str, strict: float, lenient: float, pool: GraderPool) -> None:
    score = ask(choice("red", "blue", "green"), response, pool)
    assert (score.strict, score.lenient) == (strict, lenient), score


def test_a_letter_past_the_options_is_none(pool: GraderPool) -> None:
    assert ask(choice("red", "blue"), "\\boxed{E}", pool).lenient == 0
    assert ask(choice(*map(str, range(12)), gold="L"), "\\boxed{L}", pool).strict == 1


def test_options_that_are_numbers_are_compared_as_numbers(pool: GraderPool) -> None:
    question = choice("\\frac{1}{3}", "\\frac{1}{2}", "1")
    assert ask(question, "\\boxed{0.5}", pool).lenient == 1
    assert ask(question, "\\boxed{0.4}", pool).lenient == 0


def test_repeated_options_are_both_right(pool: GraderPool) -> None:
    question = choice("12", "13", "12", gold="A")
    assert [ask(question, f"\\boxed{{{letter}}}", pool).lenient for letter in "ABC"] == [1, 0, 1]
    pictures = choice("", "", "", gold="A")
    assert [ask(pictures, f"\\boxed{{{letter}}}", pool).lenient for letter in "ABC"] == [1, 0, 0]


def test_the_form_decides_what_is_strict(pool: GraderPool) -> None:
    line = choice("red", "blue", form=AnswerForm.line)
    assert ask(line, "Answer: B", pool).strict == 1
    assert ask(line, "Answer: \\boxed{B}", pool).strict == 1
    assert ask(line, "\\boxed{B}", pool).strict == 0 and ask(line, "\\boxed{B}", pool).lenient == 1
    assert ask(line, "\\boxed{B}", pool, form=AnswerForm.boxed).strict == 1  # asked with a suffix of ours instead
    bare = choice("red", "blue", form=AnswerForm.any)
    assert [ask(bare, text, pool).strict for text in ("B", "\\boxed{B}", "Answer: B", "I am sure.\nIt is B")] == [1, 1, 1, 0]


def test_no_answer_is_no_guess_unless_the_official_rule_is_asked_for(pool: GraderPool) -> None:
    question = choice("red", "blue", guess=Guess.random)
    silent = ask(question, "I can't tell", pool)
    assert (silent.lenient, silent.official, silent.method) == (0, None, "none")
    ids = [f"q{number}" for number in range(200)]
    import dataclasses

    guesses = [ask(dataclasses.replace(question, question_id=name), "I can't tell", pool, guess=True).official for name in ids]
    again = [ask(dataclasses.replace(question, question_id=name), "I can't tell", pool, guess=True).official for name in ids]
    assert guesses == again and 60 < sum(guesses) < 140
    assert ask(question, "\\boxed{A}", pool, guess=True).official == 0  # an answer was found, and it is wrong
    nearest = choice("isosceles", "equilateral", guess=Guess.nearest)
    assert ask(nearest, "equilaterel", pool, guess=True).official == 1 and ask(nearest, "equilaterel", pool).lenient == 0


@pytest.mark.parametrize(
    ("question", "response", "right"),
    [
        (number("3"), "\\boxed{3}", 1),
        (number("3"), "It is 3 years", 1),
        (number("1234"), "\\boxed{1,234}", 1),
        (number("3"), "\\boxed{4}", 0),
        (number("2.55", 2), "\\boxed{2.5451}", 1),
        (number("2.54", 2), "\\boxed{2.5451}", 0),
        (number("-4"), "\\boxed{\u22124}", 1),
        (free("[1, 2, 3]"), "\\boxed{[1, 2, 3]}", 1),
        (free("Area $=9 \\pi \\mathrm{cm}^{2}$"), "\\boxed{9\\pi}", 1),
        (free("Area $=9 \\pi \\mathrm{cm}^{2}$"), "\\boxed{8\\pi}", 0),
        (free("2191.7 metres"), "\\boxed{2191.7}", 1),
        (free("0.5 m"), "\\boxed{50 cm}", 1),
        (free("9 m"), "\\boxed{9 cm}", 0),
        (free("118\u6389T"), "\\boxed{118^\\circ T}", 1),
        (free("$$r=7.00$$"), "\\boxed{7}", 1),
        (free("=\\frac{7}{4}"), "\\boxed{1.75}", 1),
        (free("even"), "The function is \\boxed{\\text{even}}", 1),
        (free("1:64"), "\\boxed{1:64}", 1),
        (free("69{degrees}"), "\\boxed{69^\\circ}", 1),
        (free("8\\sqrt{3}{squareinches}"), "\\boxed{8\\sqrt{3}}", 1),
        (free("(3,-4)"), "\\boxed{(3, -4)}", 1),
        (free("24/7", "3.429"), "Answer: 3.43", 1),
        (free("2000000"), "\\boxed{2,000,000}", 1),
        (free("trans-1-Chloro-4-methylcyclohexane"), "\\boxed{trans-1-chloro-4-methylcyclohexane}", 1),
    ],
)
def test_values(question: Question, response: str, right: float, pool: GraderPool) -> None:
    score = ask(question, response, pool)
    assert score.lenient == right, score
    assert score.strict == right or "\\boxed" not in response, score


def test_a_gold_answer_that_is_a_sentence_is_not_scored(pool: GraderPool) -> None:
    score = ask(free("Because both triangles have the same base and the same height over it."), "\\boxed{yes}", pool)
    assert score.strict is None and "judge" in score.not_scored


@pytest.mark.parametrize("response", ["\\boxed{" * 500, "{" * 20000, "\x00\\boxed{B\x00}", "9" * 100000, "\\boxed{9^{9^{9^{9}}}}"])
def test_hostile_responses_end_in_a_score(response: str, hasty: GraderPool) -> None:
    for question in (choice("red", "blue", guess=Guess.nearest), free("2^{3}"), number("3")):
        assert ask(question, response, hasty, guess=True).lenient in (0, 1)


def mega(metrics: dict[str, str], gold: dict[str, str], parser: str = "answer_string", **others: object) -> Question:
    rules = {"metrics": metrics, "auxiliary": {}, "weights": {}, "aggregation": "mean", "parser": parser, "gold": gold, **others}
    return Question(question_id="q", body="?", own_prompt="?", gold=(), form=AnswerForm.line, rules=rules)


def test_megabench_reads_the_answer_line_strictly_and_a_box_leniently(pool: GraderPool) -> None:
    question = mega({"count": "exact_str_match"}, {"count": "3"})
    assert ask(question, "There are three.\nAnswer: 3\n\nI am sure.", pool).strict == 1
    assert ask(question, "**Answer:** ```\n3\n```", pool).strict == 1
    assert ask(question, 'Answer: "3"', pool).strict == 1
    assert ask(question, "Answer: 4", pool).lenient == 0
    boxed = ask(question, "There are \\boxed{3}", pool)
    assert (boxed.strict, boxed.lenient) == (0, 1)


def test_megabench_reads_json_of_the_line_strictly_and_over_lines_leniently(pool: GraderPool) -> None:
    gold = {"colour": "Dark-red", "boxes": "[(0, 0, 1, 1)]"}
    question = mega({"colour": "simple_str_match", "boxes": "nbbox_iou_tuple"}, gold, "json")
    one = ask(question, 'Answer: {"colour": "darkred", "boxes": "[(0, 0, 0.5, 1)]"}', pool)
    assert (one.strict, one.lenient) == (0.75, 0.75)
    lines = ask(question, 'Answer: {\n"colour": "darkred",\n"boxes": "[(0, 0, 1, 1)]"}', pool)
    assert (lines.strict, lines.lenient) == (0, 1)
    assert ask(question, "no idea", pool).lenient == 0


def test_megabench_weights_minimum_and_fields_that_do_not_count(pool: GraderPool) -> None:
    metrics, gold = {"a": "exact_str_match", "b": "exact_str_match"}, {"a": "x", "b": "y"}
    answer = 'Answer: {"a": "x", "b": "n"}'
    assert ask(mega(metrics, gold, "json", weights={"a": 3, "b": 1}), answer, pool).strict == 0.75
    assert ask(mega(metrics, gold, "json", aggregation="min"), answer, pool).strict == 0
    ignored = mega({"a": "exact_str_match", "b": "positive_int_match"}, {"a": "x", "b": "0"}, "json")
    assert ask(ignored, 'Answer: {"a": "x", "b": "-1"}', pool).strict == 1


def test_megabench_algebra(pool: GraderPool) -> None:
    latex = mega({"f": "latex_expr_equality"}, {"f": "\\frac{1}{2}x"})
    assert ask(latex, "Answer: 0.5x", pool).strict == 1 and ask(latex, "Answer: 0.6x", pool).strict == 0
    near = mega({"n": "general_single_numerical_match"}, {"n": "100"})
    assert [ask(near, f"Answer: {text}", pool).strict for text in ("100.9", "102", "x = 100")] == [1, 0, 1]
    text = mega({"t": "text_with_latex_expr_equality"}, {"t": "slope $2x$"})
    assert [ask(text, f"Answer: {text_}", pool).strict for text_ in ("slope $x+x$", "rise $2x$")] == [1, 0]


@pytest.mark.parametrize(
    ("metric", "answer", "gold", "score"),
    [
        ("exact_str_match", "(C) blue", "C", 1),
        ("exact_str_match", "Cat", "C", 0),
        ("exact_str_match_case_insensitive", "ABC", "abc", 1),
        ("code_result_exact_str_match", "5", "```python\n5\n```", 1),
        ("simple_str_match", "Dark red.", "dark-red", 1),
        ("multi_ref_phrase", "Grey", "['gray', 'grey']", 1),
        ("near_str_match", "the Eiffel Tower", "Eiffel Towers", 1),
        ("near_str_match", "Eiffel", "Louvre", 0),
        ("normalized_similarity_damerau_levenshtein", "abdc", "abcd", 0.75),
        ("set_equality", "[1, 2, 2]", "{2, 1}", 1),
        ("set_equality", "[[1, 2]]", "[(1, 2)]", 1),
        ("set_equality_case_insensitive", "['A']", "['a']", 1),
        ("str_set_equality_comma", "b, A", "a,b", 1),
        ("str_set_equality_line_break", "b\n\nA", "a\nb", 1),
        ("sequence_equality", "[1, 2]", "(1, 2)", 1),
        ("sequence_equality", "[2, 1]", "(1, 2)", 0),
        ("sequence_accuracy_case_insensitive", "['A', 'x']", "['a', 'b']", 0.5),
        ("sequence_accuracy_case_insensitive", "['A']", "['a', 'b']", 0),
        ("longest_common_list_prefix_ratio", "[1, 2, 9]", "[1, 2, 3, 4]", 0.5),
        ("set_precision", "[1, 9]", "[1, 2]", 0.5),
        ("jaccard_index", "[1, 2]", "[2, 3]", 1 / 3),
        ("jaccard_index_case_insensitive", "['A']", "['a', 'b']", 0.5),
        ("chess_move_list_jaccard_index", "['Qh5#']", "['Qh5', 'Nf3']", 0.5),
        ("dict_equality", "{'a': 1}", '{"a": 1}', 1),
        ("dict_precision", "{'a': 1, 'b': 2}", "{'a': 1}", 0.5),
        ("dict_exact_str_match_agg_recall", "{'a': 1}", "{'a': 1, 'b': 2}", 0.5),
        ("dict_jaccard_agg_jaccard", "{'a': [1, 2]}", "{'a': [1], 'b': [1]}", 0.25),
        ("number_rel_diff_ratio", "90", "100", 0.9),
        ("number_rel_diff_ratio", "300", "100", 0),
        ("positive_int_match", "3", "3", 1),
        ("normalized_rmse", "0.55", "0.5", 0.5),
        ("angle_seq_float_rmse", "[10, 20]", "[15, 15]", 0.5),
        ("nbbox_iou_tuple", "[0, 0, 1, 1]", "[(0, 0, 1, 0.5)]", 0.5),
        ("nbbox_iou_single", "[[0, 0, 1, 1]]", "[0, 0, 1, 1]", 1),
        ("nbbox_iou_sequence", "[[0, 0, 1, 1]]", "[[0, 0, 1, 1], [0, 0, 1, 1]]", 0),
        ("dict_nbbox_iou_tuple_agg_jaccard", "{'a': [[0, 0, 1, 1]]}", "{'a': [[0, 0, 1, 1]], 'b': []}", 0.5),
        ("xml_nbbox_iou_single", "<box>0, 0, 1, 1</box>", "<box>0, 0, 1, 0.5</box>", 0.5),
        ("xml_norm_point_distance", "<point>0.5, 0.5</point>", "<point>0.5, 0.25</point>", 0.75),
        ("xml_norm_point_in_bbox", "<point>0.5, 0.5</point>", "[[0.4, 0.4, 0.6, 0.6]]", 1),
        ("sequence_coords_similarity", "[(0, 0)]", "[(0, 0)]", 1),
        ("sequence_equality_case_insensitive", "['A', 'b']", "['a', 'B']", 1),
    ],
)  # fmt: skip
def test_megabench_metrics(metric: str, answer: str, gold: str, score: float) -> None:
    assert METRICS[metric](answer, gold) == pytest.approx(score)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("answer", ["", "[", "{'a': [1, {2}]}", "nan", "[[1], {'b': 2}]", "<point>a</point>", "(" * 5000, "1e999"])
def test_megabench_metrics_take_any_answer(metric: str, answer: str, pool: GraderPool) -> None:
    score = ask(mega({"f": metric}, {"f": "[1, 2]"}), f"Answer: {answer}", pool)
    assert 0 <= score.strict <= 1

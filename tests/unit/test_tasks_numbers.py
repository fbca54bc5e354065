import math
import time

import pytest

from tasks.numbers import Quantity, last_quantity, read_quantity, same_quantity


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5", 5, ""),
        ("-5.50", -5.5, ""),
        ("\u22125", -5, ""),
        (".5", 0.5, ""),
        ("\uff15", 5, ""),
        ("1,234.5", 1234.5, ""),
        ("1{,}234", 1234, ""),
        ("5 cm", 5, "cm"),
        ("5cm", 5, "cm"),
        ("$5\\,\\text{cm}$", 5, "cm"),
        ("5\\mathrm{~m/s}", 5, "m/s"),
        ("x = 5", 5, ""),
        ("approximately 5", 5, ""),
        ("3e-4", 3e-4, ""),
        ("3.2\\times 10^{-4}", 3.2e-4, ""),
        ("\\frac{1}{2}", 0.5, ""),
        ("\\dfrac12 m", 0.5, "m"),
        ("3/4", 0.75, ""),
        ("50\\%", 50, "%"),
        ("30^{\\circ}", 30, "°"),
        ("17^\\circ", 17, "°"),
        ("\\$5", 5, "USD"),
        ("(5)", 5, ""),
        ("5.", 5, ""),
        ("5 apples", 5, "apples"),
        ("12 cm^2", 12, "cm^2"),
        ("12 square meters", 12, "square meters"),
    ],
)
def test_reading_a_number(text, value, unit):
    found = read_quantity(text)
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.unit == unit


@pytest.mark.parametrize(
    "text", ["", "five", "\\sqrt{2}", "2+3", "1e999", "1\\times10^{9999}", "1/0", "2^{10}", "3 and 4", "(1, 2)", "9" * 300, "nan"]
)
def test_what_is_no_plain_number(text):
    assert read_quantity(text) is None


@pytest.mark.parametrize(
    ("candidate", "gold", "same"),
    [
        ("5", "5 cm", True),
        ("5 cm", "5", True),
        ("0.05 m", "5 cm", True),
        ("50 mm", "5 cm", True),
        ("5 m", "5 cm", False),
        ("5 kg", "5 cm", False),
        ("1 km/h", "3.6 m/s", False),
        ("3.6 km/h", "1 m/s", True),
        ("10000 cm^2", "1 m^2", True),
        ("10000 cm\u00b2", "1 square meter", True),
        ("1 l", "1000 cm^3", True),
        ("60 minutes", "1 hour", True),
        ("180 degrees", "\u03c0 rad", False),  # the gold answer isn't a plain number here; see test_tasks_comparison
        ("5 apples", "5 apple", True),
        ("5 apples", "5 pears", False),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50", "50%", True),
        ("\\$5", "5 dollars", True),
        ("5.000001", "5", False),
    ],
)
def test_units(candidate, gold, same):
    ours, theirs = read_quantity(candidate), read_quantity(gold)
    assert ours is not None
    if theirs is None:
        assert not same
        return
    assert same_quantity(ours, theirs, relative_tolerance=0.0, absolute_tolerance=0.0) is same


@pytest.mark.parametrize(
    ("value", "relative", "absolute", "decimals", "same"),
    [
        (101, 0.01, 0.0, None, True),
        (101.1, 0.01, 0.0, None, False),
        (100.5, 0.0, 0.5, None, True),
        (100.5, 0.001, 0.5, None, True),
        (100.04, 0.0, 0.0, 1, True),
        (100.06, 0.0, 0.0, 1, False),
        (math.inf, 1.0, math.inf, None, False),
        (math.nan, 1.0, 1.0, None, False),
    ],
)
def test_tolerance(value, relative, absolute, decimals, same):
    ours, gold = Quantity(value=value, unit=""), Quantity(value=100.0, unit="")
    assert same_quantity(ours, gold, relative_tolerance=relative, absolute_tolerance=absolute, decimals=decimals) is same


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("First 3, then the sum is 42 because of it", 42, ""), ("It weighs 2 kg.", 2, "kg"), ("none", None, ""), ("3 and 4/5 m", 0.8, "m")],
)
def test_the_last_number_of_running_text(text, value, unit):
    found = last_quantity(text)
    assert (found and (pytest.approx(found.value), found.unit)) == (value if value is None else (value, unit))


@pytest.mark.parametrize("piece", ["9", "1,", "1/", "e", "\\frac{", "\\text{", "{", "cm", "^", " ", "\\times 10^", "\u00d710^9", "$", "°"])
def test_reading_takes_linear_time(piece):
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    read_quantity(text)
    last_quantity("7" + text[:1000])
    assert time.process_time() - start < 1.0

"""Numbers with units: reading them, converting units, comparing within a tolerance.

Owns the table of units. Must not know processes. Everything here takes time linear in the text's length and never evaluates it, which
is why no general unit library is used: they compute whatever a hostile "m**9**9**9" asks for.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

MAX_NUMBER_CHARS = 200  # longer texts are no plain numbers
_MAX_EXPONENT = 300  # of ten, what a float holds

_DIGITS = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?P<currency>[$€£¥]?)(?P<number>{_DIGITS})"
    r"(?:[eE](?P<e>[+-]?[0-9]{1,4})|\s?[x\u00d7*]\s?10\s?\^\s?[{(]?(?P<ten>[+-]?[0-9]{1,4})[})]?)?"
    rf"(?:\s?/\s?(?P<divisor>{_DIGITS}))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s?\{(-?[0-9.]{1,40})\}\s?\{([0-9.]{1,40})\}|\\[dt]?frac\s?([0-9])\s?([0-9])")
_PREFIX = re.compile(r"(?:[A-Za-z]\w{0,20}\s?(?:=|≈)|≈|~|about|approximately|approx\.?)\s?")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\s?\{([^{}]*)\}")
_REPLACED = {
    **{
        "\u2212": "-",
        "\u2013": "-",
        "\\times": "\u00d7",
        "\\cdot": "·",
        "\\approx": "≈",
        "^{\\circ}": "°",
        "^\\circ": "°",
        "\\degree": "°",
    },
    **{"\\circ": "°", "\\%": "%", "\\$": "$", "\\,": " ", "\\;": " ", "\\!": "", "\\ ": " ", "~": " ", "{,}": ",", "$": " "},
    **{"\\left": "", "\\right": "", "\\mu": "µ", "\u03bc": "µ"},
}
_REPLACING = re.compile("|".join(re.escape(key) for key in sorted(_REPLACED, key=len, reverse=True)))
_POWERS = str.maketrans("²³", "23")

_Dimension = tuple[tuple[str, int], ...]

# name: (factor, base). Names without an upper-case letter are found in any case; a final "s" and "." are ignored.
_UNITS: dict[str, tuple[float, str]] = {
    **{"nm": (1e-9, "m"), "µm": (1e-6, "m"), "mm": (1e-3, "m"), "cm": (1e-2, "m"), "dm": (0.1, "m"), "m": (1.0, "m"), "km": (1e3, "m")},
    **{"millimeter": (1e-3, "m"), "centimeter": (1e-2, "m"), "meter": (1.0, "m"), "kilometer": (1e3, "m"), "millimetre": (1e-3, "m")},
    **{"centimetre": (1e-2, "m"), "metre": (1.0, "m"), "kilometre": (1e3, "m"), "in": (0.0254, "m"), "inch": (0.0254, "m")},
    **{"inches": (0.0254, "m"), "ft": (0.3048, "m"), "foot": (0.3048, "m"), "feet": (0.3048, "m"), "yd": (0.9144, "m")},
    **{"yard": (0.9144, "m"), "mi": (1609.344, "m"), "mile": (1609.344, "m")},
    **{"mg": (1e-6, "kg"), "g": (1e-3, "kg"), "kg": (1.0, "kg"), "t": (1e3, "kg"), "gram": (1e-3, "kg"), "kilogram": (1.0, "kg")},
    **{"tonne": (1e3, "kg"), "lb": (0.45359237, "kg"), "pound": (0.45359237, "kg"), "oz": (0.028349523125, "kg")},
    **{"ms": (1e-3, "s"), "s": (1.0, "s"), "sec": (1.0, "s"), "second": (1.0, "s"), "min": (60.0, "s"), "minute": (60.0, "s")},
    **{"h": (3600.0, "s"), "hr": (3600.0, "s"), "hour": (3600.0, "s"), "day": (86400.0, "s"), "week": (604800.0, "s")},
    **{"°": (math.pi / 180, "rad"), "deg": (math.pi / 180, "rad"), "degree": (math.pi / 180, "rad"), "rad": (1.0, "rad")},
    **{"radian": (1.0, "rad"), "°C": (1.0, "°C"), "°F": (1.0, "°F"), "K": (1.0, "K"), "N": (1.0, "N"), "newton": (1.0, "N")},
    **{"J": (1.0, "J"), "kJ": (1e3, "J"), "joule": (1.0, "J"), "W": (1.0, "W"), "kW": (1e3, "W"), "watt": (1.0, "W"), "V": (1.0, "V")},
    **{"volt": (1.0, "V"), "A": (1.0, "A"), "mA": (1e-3, "A"), "ampere": (1.0, "A"), "Ω": (1.0, "Ω"), "ohm": (1.0, "Ω"), "Pa": (1.0, "Pa")},
    **{"kPa": (1e3, "Pa"), "Hz": (1.0, "Hz"), "mol": (1.0, "mol"), "%": (0.01, "1"), "percent": (0.01, "1")},
    **{"USD": (1.0, "USD"), "dollar": (1.0, "USD"), "€": (1.0, "EUR"), "euro": (1.0, "EUR"), "£": (1.0, "GBP"), "¥": (1.0, "JPY")},
}
_LITRES = {"ml": 1e-6, "mL": 1e-6, "l": 1e-3, "L": 1e-3, "liter": 1e-3, "litre": 1e-3}
_CURRENCIES = {"$": "USD", "€": "€", "£": "£", "¥": "¥"}
_UNIT_TOKEN = re.compile(r"\s{0,4}(?P<operator>[/·*]|per\b)?\s{0,4}(?P<name>[A-Za-zµΩ°%€£¥]+)\.?(?:(?:\s?\^\s?\{?)?(?P<power>-?[1-9])\}?)?")
_WORD_POWERS = {"square": 2, "sq": 2, "cubic": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A number and what it counts."""

    value: float
    unit: str  # as it was written; empty: none


def read_quantity(text: str) -> Quantity | None:
    r"""Read a number with its unit.

    Args:
        text: such as "5", "1,234.5 cm", "$3.2\times 10^{-4}\,\text{m/s}$", "x = \frac{1}{2}", "50\%".

    Returns:
        The number; None when the text is anything else, an algebraic expression for example.
    """
    text = _cleaned(text)
    if not text or len(text) > MAX_NUMBER_CHARS:
        return None
    text = _PREFIX.sub("", text, count=1) if _PREFIX.match(text) else text
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = _value(match)
    unit = text[match.end() :].strip()
    if value is None or (unit and _read_unit(unit) is None):
        return None
    return Quantity(value=value, unit=unit or _CURRENCIES.get(match["currency"], ""))


def last_quantity(text: str) -> Quantity | None:
    """Read the last number of running text, with its unit where a known one follows it.

    Args:
        text: at most a few thousand characters.

    Returns:
        The number; None when there is none.
    """
    text = _cleaned(text)
    matches = [match for match in _NUMBER.finditer(text) if (value := _value(match)) is not None]
    if not matches:
        return None
    value, word = _value(matches[-1]), _UNIT_TOKEN.match(text, matches[-1].end())
    assert value is not None
    known = word is not None and word["operator"] is None and _unit(word["name"]) is not None
    return Quantity(value=value, unit=word.group().strip().rstrip(".") if known and word is not None else "")


def same_quantity(
    candidate: Quantity, gold: Quantity, *, relative_tolerance: float, absolute_tolerance: float, decimals: int | None = None
) -> bool:
    """Compare two numbers in the gold answer's unit.

    Args:
        candidate: without a unit it is taken to be in the gold answer's.
        gold: without a unit it is equal to a number of any unit; a percentage may then be 50 or 0.5.
        relative_tolerance: share of the gold answer.
        absolute_tolerance: in the gold answer's unit.
        decimals: places to which both are rounded first.

    Returns:
        Equal or not; units of another dimension never are.
    """
    values = [candidate.value]
    if candidate.unit and gold.unit and candidate.unit != gold.unit:
        ours, theirs = _read_unit(candidate.unit), _read_unit(gold.unit)
        if ours is None or theirs is None or ours[1] != theirs[1]:
            return False
        values = [candidate.value * ours[0] / theirs[0]]
    elif candidate.unit in ("%", "percent") and not gold.unit:
        values = [candidate.value, candidate.value / 100]
    return any(same_number(value, gold.value, relative_tolerance, absolute_tolerance, decimals) for value in values)


def same_number(value: float, gold: float, relative_tolerance: float, absolute_tolerance: float, decimals: int | None) -> bool:
    """Compare two numbers.

    Args:
        value: of a response.
        gold: the number to compare with.
        relative_tolerance: share of gold.
        absolute_tolerance: in gold's unit; the larger one counts.
        decimals: places to which both are rounded first.

    Returns:
        Equal or not; what isn't finite is equal to nothing.
    """
    if not math.isfinite(value) or not math.isfinite(gold):
        return False
    if decimals is not None:
        value, gold = round(value, decimals), round(gold, decimals)
    allowed = max(relative_tolerance * abs(gold), absolute_tolerance)
    return abs(value - gold) <= allowed + 1e-12 * abs(gold)  # 0.05 m is 5 cm although floats say 5.000000000000001


def _cleaned(text: str) -> str:
    """The text with LaTeX's and Unicode's ways of writing a number made plain; cut off where no number can be that long."""
    text = text[: 8 * MAX_NUMBER_CHARS]
    text = _WRAPPER.sub(r" \1 ", _REPLACING.sub(lambda match: _REPLACED[match.group()], text))
    text = _FRACTION.sub(lambda match: f"{match[1] or match[3]}/{match[2] or match[4]}", text)
    text = "".join(unicodedata.normalize("NFKC", character) if character not in "²³" else character for character in text)
    return " ".join(text.strip().strip("()").split()).removesuffix(".").strip()


def _value(match: re.Match[str]) -> float | None:
    exponent = int(match["e"] or match["ten"] or 0)
    if abs(exponent) > _MAX_EXPONENT or len(match["number"]) > MAX_NUMBER_CHARS:
        return None
    value = float(match["number"].replace(",", "")) * 10.0**exponent
    if match["divisor"]:
        divisor = float(match["divisor"].replace(",", ""))
        if divisor == 0:
            return None
        value /= divisor
    return -value if match["sign"] == "-" else value


def _unit(name: str) -> tuple[float, Counter[str]] | None:
    for form in (name, name.lower(), name.lower().removesuffix("s")):
        if form in _LITRES:
            return _LITRES[form], Counter({"m": 3})
        if form in _UNITS:
            factor, base = _UNITS[form]
            return factor, Counter({base: 1})
    return None


def _read_unit(text: str) -> tuple[float, _Dimension] | None:
    """The factor to base units and the dimension; words that are no unit ("apples") are dimensions of their own."""
    factor, dimension = 1.0, Counter[str]()
    position, sign, pending = 0, 1, 1
    text = text.translate(_POWERS)
    while position < len(text):
        match = _UNIT_TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        name = match["name"]
        if match["operator"] in ("/", "per"):
            sign = -1
        if name.lower() in _WORD_POWERS:
            pending = _WORD_POWERS[name.lower()]
            continue
        one, bases = _unit(name) or (1.0, Counter({name.casefold().removesuffix("s"): 1}))
        power = sign * int(match["power"] or pending)
        pending = 1
        factor *= one**power
        for base, count in bases.items():
            dimension[base] += count * power
    return factor, tuple(sorted((base, power) for base, power in dimension.items() if power and base != "1"))

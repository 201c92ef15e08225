"""Plain numbers as people box them: integers, decimals, fractions, with a sign, a unit, a percent sign or `x =`.

The math grader reads them here without a computer algebra system, exactly, and tells a number that was worked
out (`42`, `\\frac{1}{2}`, `x = 42`, `42 cm`) from an expression that was not (`17+25`, `43=42`, `11_2`).
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

_WRAPPED = re.compile(
    r"\$\$(?P<a>[^$]*)\$\$|\$(?P<b>[^$]*)\$|\\\((?P<c>.*)\\\)|\\\[(?P<d>.*)\\\]"
    r"|\\(?:text|textbf|mathrm|mathbf|mathit|boldsymbol|bm)\s*\{(?P<e>[^{}]*)\}",
    re.DOTALL,
)
_DELETED = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\,|\{,\})(?=\d{3}(?!\d))")
_SPACES = re.compile(r"(?:\\[,;: ]|~|\s)+")

_INTEGER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)"
_NUMBER = re.compile(
    r"(?:(?P<variable>(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?) ?= ?)?"
    r"(?P<sign>[-+−]?) ?(?P<currency>\\?\$)? ?"
    rf"(?:(?:(?P<whole>{_INTEGER}) ?)?\\frac ?(?:\{{ ?(?P<top>[-+]?\d+) ?\}} ?\{{ ?(?P<bottom>[-+]?\d+) ?\}}"
    r"|(?P<top1>\d)(?P<bottom1>\d))"
    rf"|(?P<top2>{_INTEGER}) ?/ ?(?P<bottom2>{_INTEGER})(?![.,]?\d)"
    rf"|(?P<decimal>{_INTEGER}?\.\d+)|(?P<integer>{_INTEGER}))"
    r"(?: ?(?:\\times|\\cdot|×) ?10 ?\^ ?(?:\{ ?(?P<power>-?\d{1,3}) ?\}|(?P<power1>\d)))?"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_UNIT = re.compile(r" ?(?:\\(?:text|mathrm|textrm|mbox) ?\{(?P<text>[^{}\d]*)\}|(?P<bare>[A-Za-z]+))(?P<power>.*)")
_UNIT_POWER = re.compile(r"(?: ?\^ ?\{? ?(-?\d) ?\}?)?")
_DEGREES = re.compile(r" ?(?:\^ ?\{? ?\\circ ?\}?|\\degree|°)")
_PERCENT = re.compile(r" ?(?:\\?%|(?:\\text ?\{)? ?(?:percent|per cent) ?\}?)")

_UNITS = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inche",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram",
    "g": "g gram",
    "kg": "kg kilogram",
    "lb": "lb pound",
    "ml": "ml mL milliliter millilitre",
    "l": "l L liter litre",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "yr year",
    "degree": "deg degree",
    "radian": "rad radian",
    "dollar": "dollar",
    "cent": "cent",
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


@dataclass(frozen=True)
class LiteralNumber:
    """A number as it was written: its exact value, how it was spelt, and what stood around it."""

    value: Fraction
    form: Literal["integer", "decimal", "fraction"]
    percent: bool = False
    unit: str | None = None
    """A known unit of measure ("cm", "degree^2"); None for none, and for words that are not in the table."""
    variable: str | None = None
    """The left side of `x = 5`."""


def normalise(answer: str) -> str:
    r"""An answer without what carries no meaning.

    Removed: surrounding `$`, `\(...\)`, `\text{...}` and `\mathbf{...}`, a trailing full stop, `\left`, `\right`,
    `\displaystyle`; `\dfrac` and `\tfrac` become `\frac`; `1{,}234` and `1\,234` become `1234`; spaces of all
    kinds become one.
    """
    text = _DELETED.sub("", answer).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _SPACES.sub(" ", _THOUSANDS.sub("", text)).strip()
    while True:
        bare = text.removesuffix(".").strip()
        if match := _WRAPPED.fullmatch(bare):
            bare = next(group for group in match.groups() if group is not None).strip()
        if bare == text:
            return text
        text = bare


def literal(text: str) -> LiteralNumber | None:
    """Read a normalised answer as one number that was worked out; None where it is anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    value, form = _value(match)
    if value is None:
        return None
    if match["sign"] in ("-", "−"):
        value = -value
    unit = _read_unit(match["rest"].rstrip())
    if unit is None or (match["currency"] and unit.name):
        return None
    return LiteralNumber(
        value * unit.scale, form, unit.percent, "dollar" if match["currency"] else unit.name, match["variable"]
    )


def equal(gold: LiteralNumber, answer: LiteralNumber) -> bool | None:
    """Whether an answer is the right number; None where math-verify must say (percent against plain, ties).

    Exact, but where a decimal is on either side and no integer is: then six decimals count, as in math-verify.
    Stricter than math-verify: for an integer a quotient that was not carried out (84/2) is wrong; two known
    units that differ are wrong; numbers that agree only because both round to 0 are wrong.
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.variable and answer.variable and gold.variable != answer.variable:
        return False
    if gold.percent != answer.percent:
        return None
    if gold.form == "integer" and answer.form == "fraction":
        return False
    if gold.value == answer.value:
        return True
    forms = {gold.form, answer.form}
    whole = any(side.form != "decimal" and side.value.denominator == 1 for side in (gold, answer))
    if "decimal" not in forms or whole:
        return False
    scaled = [side.value * 10**6 for side in (gold, answer)]
    if any(number.denominator == 2 for number in scaled):
        return None
    rounded = [round(number) for number in scaled]
    return rounded[0] == rounded[1] != 0


def numerals(text: str) -> int:
    """How many numbers a text has in it: `17+25`, `42,42` and `11_2` have two, `1,234.5` is one."""
    return len(re.findall(r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+", text))


def _value(match: re.Match[str]) -> tuple[Fraction | None, Literal["integer", "decimal", "fraction"]]:
    power = match["power"] or match["power1"]
    scale = Fraction(10) ** int(power) if power else Fraction(1)
    if whole := match["integer"]:
        return _int(whole) * scale, "decimal" if power and int(power) < 0 else "integer"
    if decimal := match["decimal"]:
        value = Fraction(decimal.replace(",", "")) * scale
        return value, "integer" if power and value.denominator == 1 else "decimal"
    top = match["top"] or match["top1"] or match["top2"]
    bottom = _int(match["bottom"] or match["bottom1"] or match["bottom2"])
    if not bottom or power:
        return None, "fraction"
    whole = match["whole"]
    if whole and (_int(top) < 0 or bottom < 0):
        return None, "fraction"
    return (_int(whole) if whole else 0) + Fraction(_int(top), bottom), "fraction"


def _int(digits: str) -> int:
    return int(digits.replace(",", ""))


@dataclass(frozen=True)
class _Unit:
    name: str | None = None
    scale: int = 1
    percent: bool = False


def _read_unit(rest: str) -> _Unit | None:
    """What follows a number, if that is nothing, a percent sign, a scale or a unit; None for all else."""
    if not rest:
        return _Unit()
    if _PERCENT.fullmatch(rest):
        return _Unit(percent=True)
    if _DEGREES.fullmatch(rest):
        return _Unit("degree")
    match = _UNIT.fullmatch(rest)
    power = _UNIT_POWER.fullmatch(match["power"]) if match else None
    if match is None or power is None:
        return None
    words = (match["text"] or match["bare"] or "").strip(" .").split()
    if not words and match["text"] is None:
        return None
    if len(words) == 1 and words[0].lower() in _SCALES and not power[1]:
        return _Unit(scale=_SCALES[words[0].lower()])
    if any(word.lower() in _SCALES for word in words):
        return None
    name = known_unit(words[0]) if len(words) == 1 else None
    if match["bare"] and name is None:
        return None
    return _Unit(f"{name}^{power[1]}" if name and power[1] else name)


def known_unit(word: str) -> str | None:
    """The unit that a word names, singular or plural; None for a word that is no unit of the table."""
    return _UNIT_OF.get(word) or _UNIT_OF.get(word.lower()) or _UNIT_OF.get(word.lower().removesuffix("s"))

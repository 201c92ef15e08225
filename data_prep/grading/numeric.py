"""The numeric grader: numbers with a tolerance and units, converted within one dimension.

For physics, chemistry and other tasks whose answers are measured quantities; `curate` and `evaluate` run it.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from data_prep.grading import units
from data_prep.grading.base import BaseGrader, Verdict
from data_prep.grading.literals import normalise

MAX_ANSWER_CHARACTERS = 200

_GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)"
_DIGITS = rf"(?:{_GROUPED}(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_QUANTITY = re.compile(
    r"(?:[A-Za-z](?:_\{?\w+\}?)? ?(?:=|\\approx|≈) ?)?"
    rf"(?P<sign>[-+−]?) ?(?P<currency>\\?\$)? ?(?:\\frac ?\{{ ?(?P<top>{_DIGITS}) ?\}} ?\{{ ?(?P<bottom>{_DIGITS}) ?\}}"
    rf"|(?P<number>{_DIGITS})(?: ?/ ?(?P<under>{_DIGITS}))?)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})"
    r"|(?: ?(?:\\times|\\cdot|×|\*|x) ?|(?<=\d) )10 ?(?:\^|\*\*) ?\{? ?(?P<power>[-+−]?\d{1,3}) ?\}?)?"
    r"(?P<unit>.*)",
    re.DOTALL,
)


class NumericGrader(BaseGrader):
    r"""Compares a number, and its unit where there is one, with the right one.

    - Numbers: integers, decimals, `3/4`, `\frac{3}{4}`, `1,234.5`, `1.2e-3`, `1.2 \times 10^{-3}`, with a sign.
      One number only: `17+25`, `11_2`, `3:4`, `1 or 2` are no answers. Values are exact fractions, so `0.1 m` is
      `10 cm` without a rounding error.
    - Right where |answer - right| <= max(absolute, relative * |right|).
    - Units of one dimension are converted (`10 cm` is `0.1 m`, `1 km/h` is `1000/3600 m/s`, `300 K` is `26.85 °C`);
      of two dimensions they are wrong (`10 cm`, `10 s`), and so is another unit without conversion (`10 m`).
    - Where the right answer has a unit, an answer without one is right only with `unit_required: false`; where it
      has none, an answer with a unit is wrong, as nobody can tell what was meant.
    - A percent sign is a unit of its own: `50%` is 0.5, and is not 50.
    - An unknown unit makes an answer unparseable, never right.

    Units: SI and their prefixes, and what `data_prep.grading.units` lists.
    """

    type: Literal["numeric"] = "numeric"

    relative: float = Field(default=0.0, ge=0, lt=1)
    """Tolerance as a part of the right value (0.01: one percent). 0 asks for the exact value."""
    absolute: float = Field(default=0.0, ge=0)
    """Tolerance in the unit of the right answer."""
    unit_required: bool = True
    """Whether an answer must name a unit where the right answer has one."""
    unit_column: str | None = "unit"
    """The column of a row with the unit of its answer, where the answer itself has none; null for none."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing beyond Python."""
        return ()

    def gold(self, row: Mapping[str, Any]) -> str:
        """The answer, with the unit of its column behind it."""
        unit = row.get(self.unit_column) if self.unit_column else None
        answer = str(row["answer"])
        return f"{answer} {unit}" if isinstance(unit, str) and unit.strip() else answer

    def decide(self, gold: str, answer: str | None) -> Verdict:
        """The verdict; it is always decided here."""
        right = _quantity(gold)
        if right is None:
            return "unparseable_gold"
        given = _quantity(answer or "")
        if given is None:
            return "unparseable_answer"
        return "correct" if self._close(right, given) else "wrong"

    def judge(self, gold: str, answer: str) -> Verdict:
        """The same as `decide`."""
        return self.decide(gold, answer)

    def _close(self, right: "_Quantity", given: "_Quantity") -> bool:
        wanted, unit = right
        value, own = given
        if own is None and not self.unit_required:
            own = unit
        unit, own = unit or units.NONE, own or units.NONE
        if unit.dimension != own.dimension:
            return False
        relative, absolute = Fraction(str(self.relative)), Fraction(str(self.absolute))
        allowed = max(absolute, relative * abs(wanted)) * unit.scale
        return abs(own.to_base(value) - unit.to_base(wanted)) <= allowed


_Quantity = tuple[Fraction, units.Unit | None]


def _quantity(text: str) -> _Quantity | None:
    """One number and its unit (None for no unit); None where the text is anything else."""
    text = normalise(text)
    match = _QUANTITY.fullmatch(text) if 0 < len(text) <= MAX_ANSWER_CHARACTERS else None
    if match is None:
        return None
    under = _fraction(match["bottom"] or match["under"] or "1")
    if not under:
        return None
    power = (match["exponent"] or match["power"] or "0").replace("−", "-")
    value = _fraction(match["top"] or match["number"]) / under * Fraction(10) ** int(power)
    value = -value if match["sign"] in ("-", "−") else value
    rest = match["unit"].strip()
    if not rest and not match["currency"]:
        return value, None
    if rest and match["currency"]:
        return None
    unit = units.read(rest or "$")
    return None if unit is None else (value, unit)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").rstrip("."))

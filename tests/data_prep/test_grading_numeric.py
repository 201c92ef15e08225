from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.grading import NumericGrader, units

GRADER = NumericGrader()

CASES = [
    # Units of one dimension are converted, of two are not.
    ("10 cm", "10 m", "wrong"),
    ("10 cm", "0.1 m", "correct"),
    ("10 cm", r"0.1\text{ meters}", "correct"),
    ("10 cm", "10 s", "wrong"),
    ("10 cm", "10 cm^2", "wrong"),
    ("10 cm", "10", "wrong"),
    ("10", "10 cm", "wrong"),
    ("1 N", r"1\,\mathrm{kg\,m\,s^{-2}}", "correct"),
    ("9.8 m/s^2", "9.8 meters per second^2", "correct"),
    ("1 km/h", "1000/3600 m/s", "correct"),
    ("5 feet", "60 inches", "correct"),
    ("1 kWh", "3600 kJ", "correct"),
    ("1 mol/L", "1000 mol/m^3", "correct"),
    ("300 K", "26.85 °C", "correct"),
    ("212 °F", r"100^\circ\text{C}", "correct"),
    ("1 h", "60 min", "correct"),
    ("1 mW", "1 MW", "wrong"),
    ("90°", r"90^\circ", "correct"),
    ("2 m²", "20000 cm^2", "correct"),
    ("$5", r"\$5", "correct"),
    ("$5", "500 cents", "correct"),
    ("$5", "5", "wrong"),
    # Percent.
    ("0.5", r"50\%", "correct"),
    ("50%", "0.5", "correct"),
    ("50", r"50\%", "wrong"),
    # Spellings of numbers.
    ("1234.5", "1,234.5", "correct"),
    ("1234567", r"1{,}234{,}567", "correct"),
    ("0.0012", "1.2e-3", "correct"),
    ("0.0012", r"1.2 \times 10^{-3}", "correct"),
    ("6.022e23", r"6.022 \cdot 10^{23}", "correct"),
    ("3/4", r"\frac{3}{4}", "correct"),
    ("3/4", "0.75", "correct"),
    ("-3", "−3", "correct"),
    ("3 m", "x = 3 m", "correct"),
    ("42", r"\boxed{42}", "unparseable_answer"),
    # No numbers.
    ("11", "11_2", "unparseable_answer"),
    ("42", "17+25", "unparseable_answer"),
    ("42", "43=42", "unparseable_answer"),
    ("3/4", "3:4", "unparseable_answer"),
    ("1000", "1,00", "unparseable_answer"),
    ("1", "1 or 2", "unparseable_answer"),
    ("2", "2 blobs", "unparseable_answer"),
    ("1", "1/0", "unparseable_answer"),
    ("2 blobs", "2", "unparseable_gold"),
    ("about two", "2", "unparseable_gold"),
]


@pytest.mark.parametrize(("gold", "answer", "verdict"), CASES)
def test_numeric(gold: str, answer: str, verdict: str) -> None:
    assert GRADER.decide(gold, answer) == verdict


def test_the_last_box_outside_the_thinking_is_graded() -> None:
    assert GRADER.grade(r"<think>\boxed{1 m}</think>\boxed{2 m} \boxed{0.1 m}", "10 cm").verdict == "correct"
    assert GRADER.grade(r"<think>\boxed{10 cm}</think>none", "10 cm").verdict == "unparseable_answer"


@pytest.mark.parametrize(
    ("grader", "answer", "verdict"),
    [
        (NumericGrader(relative=0.01), "9.81 m/s^2", "correct"),
        (NumericGrader(relative=0.01), "981 cm/s^2", "correct"),
        (NumericGrader(relative=0.001), "9.81 m/s^2", "wrong"),
        (NumericGrader(absolute=0.01), "9.81 m/s^2", "correct"),
        (NumericGrader(absolute=0.01), "982 cm/s^2", "wrong"),  # the tolerance is in the right answer's unit
        (NumericGrader(unit_required=False), "9.8", "correct"),
        (NumericGrader(unit_required=False), "9.8 m", "wrong"),
    ],
)
def test_options(grader: NumericGrader, answer: str, verdict: str) -> None:
    assert grader.decide("9.8 m/s^2", answer) == verdict


def test_the_unit_may_stand_in_a_column() -> None:
    assert GRADER.gold({"answer": 10, "unit": "cm"}) == "10 cm"
    assert GRADER.gold({"answer": 10, "unit": ""}) == GRADER.gold({"answer": 10}) == "10"


@given(st.sampled_from(["mm", "cm", "km", "g", "mg", "ms", "h", "kPa", "eV", "mL"]), st.fractions(-(10**6), 10**6))
def test_conversion_there_and_back_is_exact(name: str, value: Fraction) -> None:
    unit = units.read(name)
    assert unit is not None
    base = unit.to_base(value)
    assert base / unit.scale == value
    assert GRADER.decide(f"{value.numerator}/{value.denominator} {name}", "1 K") == "wrong"


@pytest.mark.parametrize(("small", "times", "large"), [("mm", 10, "cm"), ("g", 1000, "kg"), ("s", 3600, "h")])
def test_sizes(small: str, times: int, large: str) -> None:
    assert GRADER.decide(f"1 {large}", f"{times} {small}") == "correct"
    assert GRADER.decide(f"{times} {small}", f"1 {large}") == "correct"

r"""Plain lists, sets, points and intervals of numbers: `(1, 2)`, `\{1, 2\}`, `1, 2`, `[0, 1)`, `0 < x \le 1`.

The math grader compares two such answers here, exactly and without a computer algebra system; whatever is not
plain is left to math-verify.
"""

import re
from dataclasses import dataclass

from data_prep.grading.literals import LiteralNumber, equal, literal

_BRACKETED = re.compile(
    r"(?:(?P<variable>[A-Za-z]) ?\\in ?)?(?P<left>\(|\[|\\\{) ?(?P<inside>[^()\[\]{}]*?) ?(?P<right>\)|\]|\\\})"
)
_CHAIN = re.compile(
    r"(?P<low>[^<>=]+?) ?(?P<left><|\\leq?(?![A-Za-z])|\\lt(?![A-Za-z])) ?(?P<variable>[A-Za-z]) ?"
    r"(?P<right><|\\leq?(?![A-Za-z])|\\lt(?![A-Za-z])) ?(?P<high>[^<>=]+)"
)
_GROUPED = re.compile(r"\d,\d{3}(?!\d)")
_FRACTION = re.compile(r"\\frac ?\{ ?(-?\d+) ?\} ?\{ ?(-?\d+) ?\}")


@dataclass(frozen=True)
class PlainList:
    """Numbers in the order they were written, the brackets around them ("" for none), and the variable of a chain."""

    numbers: tuple[LiteralNumber, ...]
    left: str
    right: str
    variable: str | None = None
    chain: bool = False


def plain_list(text: str) -> PlainList | None:
    """Read a normalised answer; None where it is no list, or has a member that is no plain number without a unit."""
    text = _FRACTION.sub(r"\1/\2", text)
    if _GROUPED.search(text):
        return None
    if match := _CHAIN.fullmatch(text):
        left, right = (
            ("(" if match["left"] in ("<", r"\lt") else "["),
            (")" if match["right"] in ("<", r"\lt") else "]"),
        )
        return _made([match["low"], match["high"]], left, right, match["variable"], chain=True)
    if match := _BRACKETED.fullmatch(text):
        return _made(match["inside"].split(","), match["left"], match["right"], match["variable"])
    return _made(text.split(","), "", "")


def same_list(right: PlainList, given: PlainList) -> bool | None:
    """Whether two lists are the same; None where math-verify must say: other brackets, ties, members left open."""
    if right.chain != given.chain or (right.left, right.right) != (given.left, given.right):
        return _same_interval(right, given)
    if right.variable and given.variable and right.variable != given.variable:
        return None
    if right.left in ("", r"\{"):
        return _same_set(right.numbers, given.numbers)
    if len(right.numbers) != len(given.numbers):
        return False
    found = [equal(one, other) for one, other in zip(right.numbers, given.numbers, strict=True)]
    if not _rising(right) and not _rising(given) and not all(found):
        return None  # Perhaps two empty intervals.
    return None if None in found else all(found)


def _same_interval(right: PlainList, given: PlainList) -> bool | None:
    """An inequality and an interval in brackets with the same ends; all that is less plain is left open."""
    if right.chain == given.chain or {len(right.numbers), len(given.numbers)} != {2}:
        return None
    if (right.left, right.right) != (given.left, given.right) or not _rising(right) or not _rising(given):
        return None
    found = [equal(one, other) for one, other in zip(right.numbers, given.numbers, strict=True)]
    return None if None in found else all(found)


def _rising(found: PlainList) -> bool:
    return found.numbers[0].value < found.numbers[1].value


def _same_set(right: tuple[LiteralNumber, ...], given: tuple[LiteralNumber, ...]) -> bool | None:
    if any(number.form == "decimal" for number in right + given):
        return None
    if any(one.form == "integer" and other.form == "fraction" and one.value == other.value
           for one in right for other in given):  # fmt: skip
        return None
    return {number.value for number in right} == {number.value for number in given}


def _made(
    parts: list[str], left: str, right: str, variable: str | None = None, chain: bool = False
) -> PlainList | None:
    numbers = [literal(part.strip()) for part in parts]
    plain = [n for n in numbers if n is not None and not (n.unit or n.percent or n.variable)]
    mixed = (left, right) in (("(", "]"), ("[", ")"))
    if len(plain) < 2 or len(plain) != len(numbers) or (mixed and len(plain) != 2):
        return None
    return PlainList(tuple(plain), left, right, variable, chain)

r"""Where the math grader is stricter than math-verify, or reads more: the rules by name, each with an example.

`data_prep.grading.math` decides by them and `benchmarks.verification` explains every disagreement by them.

| Rule | Right answer | Given | math-verify 0.9 | Here | Why |
|---|---|---|---|---|---|
| final box | 4 | `\boxed{4}` in the thinking, 5 after it | right | wrong | the thinking is not the answer |
| worked out | 42 | `17+25`, `84/2`, `\sqrt{1764}`, `10^3` for 1000 | right | wrong | boxing the question passes |
| worked out | 42 | `42,42`, `-(-42)`, `42 \pm 0`, `|42|` | right | wrong | one number, once |
| worked out | (1,2) | `(1,1+1)` | right | wrong | the same, inside a list |
| equation | 42 | `43=42` | right | wrong | only a variable or f(x) may stand on the left |
| ratio | 3/4 | `3:4` | right | wrong | a ratio is not a number; 3:4 itself may be 3/4 |
| base | 11 | `11_2` | right | wrong | the base was ignored |
| unit | 10 cm | `10 m` | right | wrong | two known units that differ; one without is right |
| zero | 0.0000001 | `0.0000002` | right | wrong | they agree only because both round to 0 |
| scale word | 5000000 | `5 \text{ million}` | wrong | right | it was read as 5 |
| thousands | 1234 | `1\,234` | wrong | right | a thin space groups digits |
| interval | (0,1) | `0<x<1` | wrong | right | it took the other order only |
| same text | `\text{a b}` | `a b` | wrong | right | equal texts are equal, read or not |

Not changed, as math-verify has it: `x=5` is 5 (an assignment is a worked-out answer), 50\% is 0.5 and also 50,
decimals count to six places (0.333 is not 1/3), `90^\circ` is not \pi/2, `i` is not \sqrt{-1}. `10 cm` is not `0.1 m`
here: units are not converted; the `numeric` grader does that. "The answer is B." is for the `choice` grader.
"""

import re
from typing import Any, Literal

from data_prep.grading.literals import LiteralNumber, equal, known_unit, literal, numerals

Rule = Literal[
    "final box", "worked out", "equation", "ratio", "base", "unit", "zero", "scale word", "thousands", "interval",
    "same text",
]  # fmt: skip

_SCALE_WORD = re.compile(r"\b(?:hundred|thousand|[mbt]r?illion)\b", re.IGNORECASE)
_GROUPING = re.compile(r"\d(?:\\,|\{,\})\d{3}")
_DOUBLE_SIGN = re.compile(r"[-−+] ?\(? ?[-−+]")
_TRAILING_UNIT = re.compile(r"\\(?:text|mathrm|textrm|mbox) ?\{ ?([A-Za-z]+)\.? ?\}(?: ?\^ ?\{? ?(-?\d) ?\}?)?$")
_ARITHMETIC = re.compile(r"(?:[\d\s.+*/^!(){}-]|\\(?:cdot|times|div|frac|sqrt)(?![A-Za-z]))+")


def looseness(right: str, right_tree: Any, given: str, given_tree: Any) -> Rule | None:
    """The rule by which an answer is wrong that math-verify might take; texts normalised, trees of math-verify."""
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import And

    if found := _loose_text(right, given):
        return found
    if literal(right) is not None and (numerals(given) != 1 or not _is_number(given_tree)):
        return "equation" if "=" in given else "worked out"
    if isinstance(right_tree, Relational | And):
        return None
    return "equation" if _is_bare_equation(given_tree) else None


def number_rule(right: LiteralNumber, given: LiteralNumber) -> Rule | None:
    """The rule by which two plain numbers differ that math-verify might take for equal."""
    if equal(right, given) is not False:
        return None
    if right.unit and given.unit and right.unit != given.unit:
        return "unit"
    if right.form == "integer" and given.form == "fraction":
        return "worked out"
    return "zero" if max(abs(right.value), abs(given.value)) < 10**-6 else None


def leniency(right: str, given: str, same_text: bool) -> Rule | None:
    """The rule by which an answer is right that math-verify refuses; texts as they were written."""
    if same_text:
        return "same text"
    if _SCALE_WORD.search(right + " " + given):
        return "scale word"
    if _GROUPING.search(right) or _GROUPING.search(given):
        return "thousands"
    return "interval" if re.search(r"[<>]|\\[lg]eq?(?![A-Za-z])", right + given) else None


def scaled(text: str) -> bool:
    """Whether a text has a word that multiplies its number: math-verify reads only the number."""
    return bool(_SCALE_WORD.search(text))


def _loose_text(right: str, given: str) -> Rule | None:
    base = _base(given)
    if base is not None and base != _base(right):
        return "base"
    units = _unit(right), _unit(given)
    if all(units) and units[0] != units[1]:
        return "unit"
    if literal(right) is not None:
        if ":" in given:
            return "ratio"
        return "worked out" if _DOUBLE_SIGN.search(given) else None
    wanted = _parts(right)
    if len(wanted) > 1 and all(literal(part) for part in wanted) and any(map(_is_open, _parts(given))):
        return "worked out"
    return None


def _is_bare_equation(tree: Any) -> bool:
    """Whether an equation, or the last of a chain, has something else than a variable or f(x) on its left."""
    from sympy import Eq, Symbol
    from sympy.core.function import AppliedUndef
    from sympy.logic.boolalg import And

    if isinstance(tree, And):
        return all(isinstance(part, Eq) for part in tree.args)
    return isinstance(tree, Eq) and not isinstance(tree.lhs, Symbol | AppliedUndef)


def _is_number(tree: Any) -> bool:
    """Whether a parsed answer is a number itself: no operation is left to do, but for a percent sign."""
    from sympy import Eq, Mul, Number, Set, Symbol, UnevaluatedExpr

    if isinstance(tree, Eq):
        return isinstance(tree.lhs, Symbol) and _is_number(tree.rhs)
    if isinstance(tree, Set):
        return len(tree.args) == 1 and _is_number(tree.args[0])
    if isinstance(tree, Mul):
        return all(isinstance(part, Number | UnevaluatedExpr) for part in tree.args)
    return isinstance(tree, Number)


def _base(text: str) -> str | None:
    """The base that is written below a number, as in 1011_2."""
    head, mark, base = text.rpartition("_")
    base = base.strip("{} ")
    return base if mark and base.isdigit() and head.rstrip(" })")[-1:].isdigit() else None


def _unit(text: str) -> str | None:
    """The known unit at the end of an expression: \\sqrt{2} \\text{ cm}."""
    match = _TRAILING_UNIT.search(text)
    name = known_unit(match[1]) if match else None
    return f"{name}^{match[2]}" if name and match and match[2] else name


def _parts(text: str) -> list[str]:
    """The members of a list, tuple, set or interval as it is written."""
    inside = text.strip()
    for left, right in (("(", ")"), ("[", "]"), (r"\{", r"\}"), ("(", "]"), ("[", ")")):
        if inside.startswith(left) and inside.endswith(right):
            inside = inside[len(left) : -len(right)]
            break
    return [part.strip() for part in inside.split(",")]


def _is_open(part: str) -> bool:
    """Whether a member of a list is arithmetic on numbers that was not carried out."""
    part = part.rpartition("=")[2].strip()
    return literal(part) is None and numerals(part) > 1 and _ARITHMETIC.fullmatch(part) is not None

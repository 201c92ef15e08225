"""The tiny task: a labelled running sum whose every total lies in 0..20, learnable from scratch on two CPU cores.

`data_prep.sources.problems` makes problems of it and the programmatic teacher reads their prompts. A prompt is
`Start: 9`, then one line a term: its label and its signed digit (`a+3`, `b+6`, `c-8`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from string import ascii_lowercase

LARGEST_TOTAL = 20
LARGEST_OPERAND = 9
MOST_TERMS = len(ascii_lowercase)

_START = re.compile(r"Start: (0|[1-9][0-9]*)")
_TERM = re.compile(r"([a-z])([+-][1-9][0-9]*)")


@dataclass(frozen=True)
class RunningSum:
    """One problem: where it starts and what is added, term by term."""

    start: int
    operands: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The total before the first term, then after each term: one more than there are operands."""
        return tuple(accumulate(self.operands, initial=self.start))

    @property
    def answer(self) -> int:
        """The last total."""
        return self.totals[-1]

    @property
    def prompt(self) -> str:
        """The problem as a student sees it."""
        terms = (f"{label}{operand:+d}" for label, operand in zip(ascii_lowercase, self.operands, strict=False))
        return "\n".join([f"Start: {self.start}", *terms])


def parse(prompt: str) -> RunningSum | None:
    """Read a prompt back; None where it is not a running sum with labels a, b, c, … in order."""
    first, *rest = prompt.split("\n")
    start = _START.fullmatch(first)
    terms = [_TERM.fullmatch(line) for line in rest]
    if start is None or not terms or len(terms) > MOST_TERMS:
        return None
    operands = []
    for label, term in zip(ascii_lowercase, terms, strict=False):
        if term is None or term[1] != label:
            return None
        operands.append(int(term[2]))
    return RunningSum(int(start[1]), tuple(operands))


def count_distinct(min_terms: int, max_terms: int) -> int:
    """How many different problems have between `min_terms` and `max_terms` terms."""
    ways = [1] * (LARGEST_TOTAL + 1)
    total = 0
    for terms in range(1, max_terms + 1):
        ways = [sum(ways[at + operand] for operand in _allowed(at)) for at in range(LARGEST_TOTAL + 1)]
        if terms >= min_terms:
            total += sum(ways)
    return total


def draw(rng: Random, min_terms: int, max_terms: int) -> RunningSum:
    """A random problem: the number of terms, the start and each operand are uniform over what is allowed."""
    start = at = rng.randint(0, LARGEST_TOTAL)
    operands = []
    for _ in range(rng.randint(min_terms, max_terms)):
        operands.append(rng.choice(_allowed(at)))
        at += operands[-1]
    return RunningSum(start, tuple(operands))


def enumerate_all(min_terms: int, max_terms: int) -> Iterator[RunningSum]:
    """Every problem there is, in a fixed order; only for when most of them are wanted."""
    growing = [RunningSum(start, ()) for start in range(LARGEST_TOTAL + 1)]
    for terms in range(1, max_terms + 1):
        growing = [
            RunningSum(problem.start, (*problem.operands, operand))
            for problem in growing
            for operand in _allowed(problem.answer)
        ]
        if terms >= min_terms:
            yield from growing


def _allowed(total: int) -> list[int]:
    """The operands that keep a total within 0..20: signed digits, never 0."""
    lowest, highest = max(-LARGEST_OPERAND, -total), min(LARGEST_OPERAND, LARGEST_TOTAL - total)
    return [operand for operand in range(lowest, highest + 1) if operand]

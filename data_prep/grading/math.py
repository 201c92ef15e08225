"""The math grader: math-verify behind a fast path for plain numbers, and strict where math-verify can be gamed.

`curate` and `evaluate` run it through `data_prep.grading.pool`; rewards may call `grade` in their own process.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from data_prep.grading.base import BaseGrader, Grade, Verdict
from data_prep.grading.extract import last_boxed
from data_prep.grading.literals import equal, literal, normalise, numerals

MAX_ANSWER_CHARACTERS = 1000
"""A longer answer is not an answer: it counts as unparseable."""


class MathVerifyGrader(BaseGrader):
    r"""Compares the last `\boxed{}` of the final text with the right answer as mathematics.

    Two plain numbers are compared exactly (`data_prep.grading.literals`); all else by math-verify 0.9 (Hugging
    Face), whose leniencies that a policy could learn to abuse are closed:

    - Only a box outside the thinking counts: `\boxed{4}` inside `<think>` is no answer.
    - Where the right answer is a number, the answer must be one number, worked out: `17+25`, `84/2`, `43=42`,
      `11_2`, `3:4`, `12 34`, `\sqrt{1764}` and `5!` are wrong, `42`, `42.0`, `x = 42`, `42 cm`, `\{42\}` are right.
    - Where the right answer is no equation, `lhs = answer` needs a variable or f(x) on its left, once:
      `x = \sqrt{2}` is right, `43 = \sqrt{2}` and `x = 43 = \sqrt{2}` are wrong.
    - Two known units that differ are wrong (`10 m` for `10 cm`); so is another base (`11_2` for `11_3`).
    - Two different numbers that both round to 0 at six decimals are different.

    As in math-verify: decimals count to six places (0.333 is not 1/3, 0.333333 is), 50\% is 0.5 and also 50,
    intervals and inequalities may stand for each other, `90^\circ` is not \pi/2.
    """

    type: Literal["math_verify"] = "math_verify"

    timeout_s: float = Field(default=5.0, gt=0)
    """CPU seconds for one comparison in a worker process, seconds in this one; math-verify's own default is 5."""

    @property
    def needs(self) -> tuple[str, ...]:
        """math-verify, with sympy and its LaTeX parser."""
        return ("math_verify",)

    @property
    def limit_s(self) -> float:
        """CPU seconds that one `judge` may take."""
        return self.timeout_s

    def decide(self, gold: str, answer: str | None) -> Verdict | None:
        """The verdict where texts or plain numbers settle it; None where math-verify is needed."""
        right, given = _gold(gold), normalise(answer or "")
        if not right:
            return "unparseable_gold"
        if not given or len(given) > MAX_ANSWER_CHARACTERS:
            return "unparseable_answer"
        if right == given:
            return "correct"
        right_number = literal(right)
        given_number = literal(given) if right_number else None
        if right_number is None or given_number is None:
            return None
        same = equal(right_number, given_number)
        return None if same is None else ("correct" if same else "wrong")

    def judge(self, gold: str, answer: str) -> Verdict:
        """The verdict of math-verify, made strict. It may hang on hostile answers: set a limit from outside."""
        right, given = _gold(gold), normalise(answer)
        right_tree = _parse(right)
        if right_tree is None:
            return "unparseable_gold"
        given_tree = _parse(given)
        if given_tree is None:
            return "unparseable_answer"
        if _is_loose(right, right_tree, given, given_tree):
            return "wrong"
        return "correct" if _verify(right_tree, given_tree) else "wrong"

    def grade(self, response: str, answer: str) -> Grade:
        """Grade in this process; the time limit holds in the main thread, between two Python instructions only.

        For answers of unknown origin in bulk use `data_prep.grading.pool`, whose limits are hard.
        """
        extracted = self.extract(response)
        verdict = self.decide(answer, extracted)
        if verdict is None:
            with _alarm(self.timeout_s) as late:
                verdict = self.judge(answer, extracted or "")
            verdict = "timeout" if late else verdict
        return Grade(verdict or "timeout", extracted)

    def equivalent(self, a: str, b: str) -> bool:
        """Whether each of two answers, taken as right, accepts the other; False where that takes too long."""
        with _alarm(self.timeout_s):
            return self.agree(a, b)
        return False


def _gold(answer: str) -> str:
    return normalise(last_boxed(answer) or answer)


def _is_loose(right: str, right_tree: Any, given: str, given_tree: Any) -> bool:
    """Whether an answer is of a shape that math-verify would take, but that shows no result."""
    from sympy import Eq, Symbol
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import And

    if literal(right) is not None and (numerals(given) != 1 or not _is_number(given_tree)):
        return True
    if _base(given) is not None and _base(given) != _base(right):
        return True
    if isinstance(right_tree, Relational | And):
        return False
    if isinstance(given_tree, And):
        return all(isinstance(part, Eq) for part in given_tree.args)
    return isinstance(given_tree, Eq) and not isinstance(given_tree.lhs, Symbol | AppliedUndef)


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


@lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """A sympy tree, or None where math-verify finds none."""
    from math_verify import LatexExtractionConfig, parse

    _silence()
    found = parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def _verify(right: Any, given: Any) -> bool:
    from math_verify import verify

    return bool(verify(right, given, allow_set_relation_comp=True, timeout_seconds=None))


@lru_cache(maxsize=1)
def _silence() -> None:
    """math-verify warns that no time limit is set; it is set here."""
    for name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _TimeUp(BaseException):
    """Not an Exception: sympy and math-verify catch those."""


@contextmanager
def _alarm(seconds: float) -> Iterator[list[bool]]:
    """Stop the block after so many seconds; the list that it gives is then not empty. Only in the main thread."""
    late: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield late
        return

    def stop(*_: object) -> None:
        raise _TimeUp

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield late
    except _TimeUp:
        late.append(True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

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
from data_prep.grading.lists import plain_list, same_list
from data_prep.grading.literals import equal, literal, normalise
from data_prep.grading.strictness import Rule, leniency, looseness, number_rule, scaled

MAX_ANSWER_CHARACTERS = 1000
"""A longer answer is not an answer: it counts as unparseable."""


class MathVerifyGrader(BaseGrader):
    r"""Compares the last `\boxed{}` of the final text with the right answer as mathematics.

    Two plain numbers are compared exactly (`data_prep.grading.literals`); all else by math-verify 0.9 (Hugging
    Face), whose leniencies that a policy could learn to abuse are closed: where the right answer is a number, the
    answer must be one number, worked out (`42`, `42.0`, `x = 42`, `42 cm` and `\{42\}` are, `17+25` and `43=42` are
    not). `data_prep.grading.strictness` has the table of all rules, with an example of each.
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
        if right_number and given_number:
            same = equal(right_number, given_number)
        else:
            lists = (plain_list(right), plain_list(given)) if right_number is None else (None, None)
            same = same_list(lists[0], lists[1]) if lists[0] and lists[1] else None
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
        if looseness(right, right_tree, given, given_tree):
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

    def explain(self, response: str, answer: str, verdict: Verdict) -> Rule | None:
        """The documented rule by which `verdict` on a response may differ from math-verify's; None where none does."""
        extracted = self.extract(response)
        if extracted is None:
            return "final box"
        right, given = _gold(answer), normalise(extracted)
        numbers = literal(right), literal(given)
        if verdict == "correct":
            return leniency(answer, extracted, right == given)
        if scaled(right) or scaled(given):
            return "scale word"
        if numbers[0] and numbers[1]:
            return number_rule(numbers[0], numbers[1])
        with _alarm(self.timeout_s):
            trees = _parse(right), _parse(given)
            return looseness(right, trees[0], given, trees[1]) if None not in trees else None
        return None


def _gold(answer: str) -> str:
    return normalise(last_boxed(answer) or answer)


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

"""The exact grader: two answers are equal where their text is, after a little normalisation.

For tasks whose answers have one spelling, such as the running sum of the tiny recipes.
"""

from typing import Literal

from data_prep.grading.base import BaseGrader, Verdict


class ExactGrader(BaseGrader):
    r"""Compares the last `\boxed{}` of the final text with the right answer, as text.

    Normalised on both sides: runs of whitespace become one space, surrounding `$` and spaces and one
    trailing full stop are removed. Nothing else: `42` and `42.0` differ, and so do `a` and `A`.
    """

    type: Literal["exact"] = "exact"

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing beyond Python."""
        return ()

    def decide(self, gold: str, answer: str | None) -> Verdict:
        """The verdict; it is always decided here."""
        right = _normalise(gold)
        if not right:
            return "unparseable_gold"
        given = _normalise(answer or "")
        if not given:
            return "unparseable_answer"
        return "correct" if given == right else "wrong"

    def judge(self, gold: str, answer: str) -> Verdict:
        """The same as `decide`."""
        return self.decide(gold, answer)


def _normalise(text: str) -> str:
    text = " ".join(text.split())
    text = text.strip("$ ")
    return text.removesuffix(".").strip("$ ")

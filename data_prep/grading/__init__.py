"""Grading: what the answer of a response is, and whether it is right, with five verdicts that are never folded."""

from typing import Annotated

from pydantic import Field

from data_prep.grading.base import VERDICTS, BaseGrader, Grade, Verdict
from data_prep.grading.exact import ExactGrader
from data_prep.grading.extract import final_text, last_boxed
from data_prep.grading.math import MathVerifyGrader
from data_prep.grading.pool import GradingPool, equivalent_pairs, grade_rows

Grader = Annotated[ExactGrader | MathVerifyGrader, Field(discriminator="type")]

__all__ = [
    "VERDICTS",
    "BaseGrader",
    "ExactGrader",
    "Grade",
    "Grader",
    "GradingPool",
    "MathVerifyGrader",
    "Verdict",
    "equivalent_pairs",
    "final_text",
    "grade_rows",
    "last_boxed",
]

"""Grading: what the answer of a response is, and whether it is right, with verdicts that are never folded."""

from typing import Annotated

from pydantic import Field

from data_prep.grading.base import ALL_VERDICTS, VERDICTS, BaseGrader, Grade, Verdict
from data_prep.grading.choice import ChoiceGrader
from data_prep.grading.code import CodeGrader
from data_prep.grading.exact import ExactGrader
from data_prep.grading.extract import final_text, last_boxed
from data_prep.grading.judge import JudgeGrader
from data_prep.grading.math import MathVerifyGrader
from data_prep.grading.numeric import NumericGrader
from data_prep.grading.pool import GradingPool, grade_rows
from data_prep.grading.reasoning_gym import ReasoningGymGrader

Grader = Annotated[
    ExactGrader | MathVerifyGrader | NumericGrader | ChoiceGrader | CodeGrader | ReasoningGymGrader | JudgeGrader,
    Field(discriminator="type"),
]

__all__ = [
    "ALL_VERDICTS",
    "VERDICTS",
    "BaseGrader",
    "ChoiceGrader",
    "CodeGrader",
    "ExactGrader",
    "Grade",
    "Grader",
    "GradingPool",
    "JudgeGrader",
    "MathVerifyGrader",
    "NumericGrader",
    "ReasoningGymGrader",
    "Verdict",
    "final_text",
    "grade_rows",
    "last_boxed",
]

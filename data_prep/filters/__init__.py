"""Filters: each keeps a graded row or gives the reason to drop it; a recipe gives their order."""

from typing import Annotated

from pydantic import Field

from data_prep.filters.base import Filter
from data_prep.filters.correct import CorrectFilter
from data_prep.filters.length import LengthFilter
from data_prep.filters.repetition import RepetitionFilter
from data_prep.filters.thinking import ThinkingFilter
from data_prep.filters.truncation import TruncationFilter

Filters = Annotated[
    CorrectFilter | TruncationFilter | ThinkingFilter | LengthFilter | RepetitionFilter,
    Field(discriminator="type"),
]

__all__ = [
    "CorrectFilter",
    "Filter",
    "Filters",
    "LengthFilter",
    "RepetitionFilter",
    "ThinkingFilter",
    "TruncationFilter",
]

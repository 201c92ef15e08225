"""Filters: each keeps a graded row or gives the reason to drop it; a recipe gives their order."""

from typing import Annotated

from pydantic import Field

from data_prep.filters.base import Example, Filter
from data_prep.filters.column import ColumnFilter
from data_prep.filters.correct import CorrectFilter
from data_prep.filters.difficulty import DifficultyFilter
from data_prep.filters.language import LanguageFilter
from data_prep.filters.length import LengthFilter
from data_prep.filters.repetition import RepetitionFilter
from data_prep.filters.special_tokens import SpecialTokensFilter
from data_prep.filters.thinking import ThinkingFilter
from data_prep.filters.truncation import TruncationFilter

Filters = Annotated[
    CorrectFilter
    | TruncationFilter
    | ThinkingFilter
    | LengthFilter
    | RepetitionFilter
    | LanguageFilter
    | SpecialTokensFilter
    | DifficultyFilter
    | ColumnFilter,
    Field(discriminator="type"),
]

__all__ = [
    "ColumnFilter",
    "CorrectFilter",
    "DifficultyFilter",
    "Example",
    "Filter",
    "Filters",
    "LanguageFilter",
    "LengthFilter",
    "RepetitionFilter",
    "SpecialTokensFilter",
    "ThinkingFilter",
    "TruncationFilter",
]

"""Annotations: each adds columns to graded rows that filters and selection go by; a recipe gives their order."""

from typing import Annotated

from pydantic import Field

from data_prep.annotation.base import Annotation
from data_prep.annotation.difficulty import DifficultyAnnotation
from data_prep.annotation.domain import DomainAnnotation, DomainRule
from data_prep.annotation.escape import EscapeAnnotation
from data_prep.annotation.language import LanguageAnnotation
from data_prep.annotation.streaming import annotate
from data_prep.annotation.tokens import TokensAnnotation

Annotations = Annotated[
    TokensAnnotation | LanguageAnnotation | DifficultyAnnotation | DomainAnnotation | EscapeAnnotation,
    Field(discriminator="type"),
]

__all__ = [
    "Annotation",
    "Annotations",
    "DifficultyAnnotation",
    "DomainAnnotation",
    "DomainRule",
    "EscapeAnnotation",
    "LanguageAnnotation",
    "TokensAnnotation",
    "annotate",
]

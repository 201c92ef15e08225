"""The annotation `domain`: the subject of a problem, from a column that it has, or by the recipe's rules."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_prep.annotation.base import Annotation, Row
from reasonforge.config import Strict


class DomainRule(Strict):
    """What makes a problem one of a domain: any of the words or patterns is in its text."""

    name: str = Field(min_length=1)
    """The domain."""
    words: list[str] = Field(default_factory=list)
    """Words, or several one after the other, found as whole words whatever their case."""
    patterns: list[str] = Field(default_factory=list)
    r"""Regular expressions of Python, searched for as they are ("\\binom", "(?i)probabilit")."""

    @field_validator("patterns")
    @classmethod
    def _check_patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(word.strip() for word in self.words) and not self.patterns:
            raise ValueError(f"the domain {self.name!r} has neither words nor patterns, so nothing would be of it")
        return self

    def matches(self, text: str) -> bool:
        """Whether a text is of this domain."""
        return any(one.search(text) for one in _compiled(tuple(self.words), tuple(self.patterns)))


class DomainAnnotation(Annotation):
    """Adds `domain`: the text of `column` where a row has one there, else the name of the first rule that matches the
    prompt, else `otherwise`."""

    columns: ClassVar[tuple[str, ...]] = ("prompt",)
    adds: ClassVar[tuple[str, ...]] = ("domain",)

    type: Literal["domain"] = "domain"
    column: str | None = None
    """A column of the rows that names the domain ("subject"); it may be `domain` itself, with `replace: true`."""
    rules: list[DomainRule] = Field(default_factory=list)
    """Tried in this order; the first that matches counts."""
    otherwise: str | None = None
    """The domain of what no rule matches."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if self.column is None and not self.rules:
            raise ValueError("a domain comes from `column`, from `rules`, or from both, but neither is given")
        return self

    def look(self, rows: Sequence[Row]) -> list[Row]:
        """Name each row's domain."""
        return [{"domain": self._of(row)} for row in rows]

    def _of(self, row: Row) -> str | None:
        given = row.get(self.column) if self.column is not None else None
        if isinstance(given, str) and given.strip():
            return given.strip()
        return next((rule.name for rule in self.rules if rule.matches(row["prompt"])), self.otherwise)


@lru_cache(maxsize=256)
def _compiled(words: tuple[str, ...], patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    found = [re.compile(pattern) for pattern in patterns]
    said = [r"\s+".join(map(re.escape, word.split())) for word in words if word.strip()]
    if said:
        found.insert(0, re.compile(rf"(?i)(?<!\w)(?:{'|'.join(said)})(?!\w)"))
    return tuple(found)

"""The filter `language`: keeps traces of some languages, in the prompt's language, that do not mix it with others."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_prep.annotation.language import LanguageAnnotation
from data_prep.filters.base import Filter

if TYPE_CHECKING:
    from data_prep.annotation.identify import Reading


class LanguageFilter(Filter):
    """Drops a response in the wrong language, or with too much of others in it.

    It goes by the columns `language`, `prompt_language` and `mixed` where a row has all of them from the annotation
    `language`, and finds the same out by itself where not. What is not known (null) drops no row, and languages that a
    sentence does not tell apart (Indonesian and Malay, Czech and Slovak, Danish and Norwegian) count as one.
    """

    columns: ClassVar[tuple[str, ...]] = ("prompt", "response")

    type: Literal["language"] = "language"
    allowed: list[str] | None = None
    """The languages that a response may be in, as ISO 639-1 codes (["en", "zh"]); null allows all."""
    same_as_prompt: bool = True
    """Whether a response must be in its prompt's language."""
    max_mixed: float | None = Field(default=0.05, ge=0, le=1)
    """The largest share of the response's letters in another script or language; null sets no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for code in self.allowed or ():
            if len(code) != 2 or not code.isascii() or not code.islower():
                raise ValueError(f"allowed: {code!r} is no ISO 639-1 code, which are two small letters, as 'en'")
        if not self.allowed and not self.same_as_prompt and self.max_mixed is None:
            raise ValueError(
                "a language filter needs `allowed`, `same_as_prompt` or `max_mixed`, else it drops nothing"
            )
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """py3langid."""
        return ("py3langid",)

    def reason(self, row: dict[str, Any]) -> str | None:
        """The language where it is not allowed, another than the prompt's, or too much of others."""
        found = self._reading(row)
        if self.allowed and not found.is_one_of(self.allowed):
            return f"in {found.language}"
        if self.same_as_prompt and not found.as_prompted:
            return "not in the prompt's language"
        if self.max_mixed is not None and found.mixed is not None and found.mixed > self.max_mixed:
            return "mixes languages"
        return None

    def _reading(self, row: dict[str, Any]) -> "Reading":
        from data_prep.annotation.identify import Reading, read  # its patterns take a while to compile

        if all(column in row for column in LanguageAnnotation.adds):
            return Reading(row["language"], row["prompt_language"], row["mixed"])
        return read(row["prompt"], row["response"])

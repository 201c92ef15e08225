"""The filter `special_tokens`: drops rows with strings that a tokenizer would read as control tokens."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from data_prep.annotation.control import THINKING, files_of, finder
from data_prep.filters.base import Filter


class SpecialTokensFilter(Filter):
    """Drops a row whose prompt or response has such a string: encoded, it would end a turn or open another.

    `<think>` and `</think>` may stand in a response. The annotation `escape` rewrites them instead; `tokenize` drops
    what still has any of its own tokenizer's.
    """

    columns: ClassVar[tuple[str, ...]] = ("prompt", "response")

    type: Literal["special_tokens"] = "special_tokens"
    model: str | None = None
    """A model directory, whose control tokens are looked for: the student's."""
    tokens: list[str] = Field(default_factory=list)
    """Strings that are looked for too. Without them and without `model` it is those of Qwen and Llama 3."""

    @field_validator("tokens")
    @classmethod
    def _check(cls, tokens: list[str]) -> list[str]:
        if "" in tokens:
            raise ValueError("an empty string is in every text, so no row would be left")
        return tokens

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files of the tokenizer."""
        return files_of(self.model)

    @property
    def can_work(self) -> bool:
        """Whether the tokenizer is here."""
        return self.model is None or bool(self.external_files)

    def reason(self, row: dict[str, Any]) -> str | None:
        """The first such string of the prompt or of the response, and in which it is."""
        tokens = tuple(self.tokens)
        for column, allowed in (("prompt", ()), ("response", THINKING)):
            found = finder(self.model, tokens, allowed).search(row[column])
            if found is not None:
                return f"{found.group()} in the {column}"
        return None

"""The filter `length`: drops responses that are too short or too long."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.filters.base import Filter
from reasonforge.errors import RequestError


class LengthFilter(Filter):
    """Drops a response outside [min, max], both included."""

    type: Literal["length"] = "length"

    unit: Literal["words", "characters", "tokens"] = "words"
    """What is counted of the response: words between spaces, characters, or tokens as `column` has them."""
    column: str = Field(default="completion_tokens", min_length=1)
    """The column with the number of tokens: the engine's own, by the teacher's tokenizer, or the `response_length` that
    the annotation `tokens` adds. A row whose engine gave none is kept."""
    min: int | None = Field(default=None, ge=1)
    """The least that is kept; null sets no limit."""
    max: int | None = Field(default=None, ge=1)
    """The most that is kept; null sets no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.unit != "tokens" and "column" in self.model_fields_set:
            raise ValueError(f"column {self.column!r} is given, but unit is {self.unit!r}; set unit to tokens")
        if self.min is None and self.max is None:
            raise ValueError("a length filter needs `min` or `max`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}, so no row could pass; exchange them")
        return self

    def reason(self, row: dict[str, Any]) -> str | None:
        """Fewer than `min` or more than `max`, with the limit in it."""
        count = self._count(row)
        if count is None:
            return None
        if self.min is not None and count < self.min:
            return f"fewer than {self.min} {self.unit}"
        if self.max is not None and count > self.max:
            return f"more than {self.max} {self.unit}"
        return None

    def _count(self, row: dict[str, Any]) -> int | None:
        if self.unit != "tokens":
            return len(row["response"].split() if self.unit == "words" else row["response"])
        count = row.get(self.column)
        if isinstance(count, bool) or not isinstance(count, int | None):
            raise RequestError(
                f"row {row.get('id')}", f"found {str(count)[:40]!r} in {self.column!r}, which is no count"
            )
        if self.column not in row and self.column != "completion_tokens":
            raise RequestError(
                f"row {row.get('id')}", f"no column {self.column!r}", "the annotation `tokens` adds `response_length`"
            )
        return count

"""The filter `length`: drops responses that are too short or too long."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.filters.base import Filter


class LengthFilter(Filter):
    """Drops a response outside [min, max], both included."""

    type: Literal["length"] = "length"

    unit: Literal["words", "characters", "tokens"] = "words"
    """What is counted of the response: words between spaces, characters, or the engine's `completion_tokens`.
    A row whose token count is not known is kept."""
    min: int | None = Field(default=None, ge=1)
    """The least that is kept; null sets no limit."""
    max: int | None = Field(default=None, ge=1)
    """The most that is kept; null sets no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
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
        if self.unit == "tokens":
            return row.get("completion_tokens")
        return len(row["response"].split() if self.unit == "words" else row["response"])

"""The filter `truncated`: drops responses that hit the token limit."""

from typing import Any, Literal

from data_prep.filters.base import Filter


class TruncationFilter(Filter):
    """Drops a response that its engine cut off (`finish_reason` "length"): it lacks its end, often its answer."""

    type: Literal["truncated"] = "truncated"

    def reason(self, row: dict[str, Any]) -> str | None:
        """Whether the engine gave "length" as its finish reason."""
        return "finish_reason length" if row.get("finish_reason") == "length" else None

"""The filter `thinking`: drops responses whose thinking is not one closed block."""

from typing import Any, Literal

from data_prep.filters.base import Filter
from data_prep.thinking import THINK_CLOSE, THINK_OPEN


class ThinkingFilter(Filter):
    """Drops a response with a `<think>` that is not closed, or with more than one block of thinking.

    `</think>` without `<think>` is one block, since a chat template may have opened it in the prompt.
    """

    type: Literal["thinking"] = "thinking"

    required: bool = False
    """Whether a response without thinking, or with nothing inside it, is dropped too."""

    def reason(self, row: dict[str, Any]) -> str | None:
        """One of unclosed, repeated, missing and empty."""
        response = row["response"]
        opened, closed = response.count(THINK_OPEN), response.count(THINK_CLOSE)
        head, _, tail = response.rpartition(THINK_CLOSE)
        if (opened and not closed) or THINK_OPEN in tail:
            return "unclosed"
        if opened > 1 or closed > 1 or (opened and head.partition(THINK_OPEN)[0].strip()):
            return "repeated"
        if self.required and not closed:
            return "missing"
        if self.required and not head.replace(THINK_OPEN, "").strip():
            return "empty"
        return None

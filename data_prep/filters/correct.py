"""The filter `correct`: keeps what the grader found correct."""

from typing import Any, ClassVar, Literal

from data_prep.filters.base import Filter


class CorrectFilter(Filter):
    """Drops every row with another verdict than "correct"; the verdict is the reason."""

    columns: ClassVar[tuple[str, ...]] = ("verdict",)

    type: Literal["correct"] = "correct"

    def reason(self, row: dict[str, Any]) -> str | None:
        """The verdict, where it is not "correct"."""
        verdict = str(row["verdict"])
        return None if verdict == "correct" else verdict

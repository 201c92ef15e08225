"""The filter `column`: keeps rows by the value of one column."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_prep.filters.base import Filter
from reasonforge.errors import RequestError


class ColumnFilter(Filter):
    """Keeps a row whose column has one of some values, or a number within bounds, both included."""

    columns: ClassVar[tuple[str, ...]] = ()

    type: Literal["column"] = "column"
    column: str = Field(min_length=1)
    """The column that decides ("domain")."""
    among: list[str | int | bool] | None = None
    """The values that are kept."""
    min: float | None = None
    """The least number that is kept."""
    max: float | None = None
    """The largest number that is kept."""
    missing: Literal["keep", "drop"] = "drop"
    """What becomes of a row that lacks the column, or has null there."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        bounded = self.min is not None or self.max is not None
        if bounded == (self.among is not None):
            raise ValueError("a column filter needs either `among`, or `min` or `max`, or both of these")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so no row could pass; exchange them")
        return self

    def reason(self, row: dict[str, Any]) -> str | None:
        """Which condition the value fails. Raises RequestError for a value with bounds that is no number."""
        value = row.get(self.column)
        if value is None:
            return f"no {self.column}" if self.missing == "drop" else None
        if self.among is not None:
            known = any(type(value) is type(one) and value == one for one in self.among)
            return None if known else f"{self.column} not among those kept"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError(
                f"row {row.get('id')}", f"found {str(value)[:40]!r} in {self.column!r}, which is no number"
            )
        if self.min is not None and value < self.min:
            return f"{self.column} below {self.min:g}"
        return f"{self.column} above {self.max:g}" if self.max is not None and value > self.max else None

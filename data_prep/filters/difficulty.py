"""The filter `difficulty`: keeps problems that are neither too easy nor too hard for whoever wrote the traces."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_prep.filters.base import Filter
from reasonforge.errors import RequestError


class DifficultyFilter(Filter):
    """Keeps the traces of problems with a pass rate between two bounds, which are left out themselves.

    It goes by `pass_rate`, which the annotation `difficulty` adds. The default drops what is always or never solved:
    such a problem says nothing of which trace is better (DAPO, arXiv 2503.14476, section 3.2).
    """

    columns: ClassVar[tuple[str, ...]] = ()

    type: Literal["difficulty"] = "difficulty"
    above: float = Field(default=0.0, ge=-1, le=1)
    """The pass rate (0..1) must be larger; -1 sets no limit."""
    below: float = Field(default=1.0, ge=0, le=2)
    """The pass rate must be smaller; 2 sets no limit."""
    unknown: Literal["keep", "drop"] = "keep"
    """What becomes of a problem with too few traces for a pass rate (null)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.above >= self.below:
            raise ValueError(f"no pass rate is above {self.above:g} and below {self.below:g}; exchange them")
        return self

    def reason(self, row: dict[str, Any]) -> str | None:
        """Too hard, too easy or not known. Raises RequestError where no annotation gave a pass rate."""
        if "pass_rate" not in row:
            raise RequestError(
                f"row {row.get('id')}", "no column 'pass_rate'", "add `annotate: [{type: difficulty}]` to the stage"
            )
        rate = row["pass_rate"]
        if rate is None:
            return "pass rate unknown" if self.unknown == "drop" else None
        if not isinstance(rate, int | float):
            raise RequestError(
                f"row {row.get('id')}", f"found {str(rate)[:40]!r} as its 'pass_rate', which is no number"
            )
        if rate <= self.above:
            return f"pass rate not above {self.above:g}"
        return f"pass rate not below {self.below:g}" if rate >= self.below else None

"""The base of all filters: one small method that keeps a graded row or gives the reason to drop it."""

from abc import abstractmethod
from typing import Any, ClassVar

from reasonforge.config import Strict


class Filter(Strict):
    """A filter has a literal `type`, its thresholds, and `reason`. It holds no state: `curation` does the counting."""

    columns: ClassVar[tuple[str, ...]] = ("response",)
    """The texts that a row must have."""

    @abstractmethod
    def reason(self, row: dict[str, Any]) -> str | None:
        """Why a graded row is dropped, in a few words without figures of the row, since rows are counted by it.

        None keeps the row.
        """

"""The base of all annotations: each adds columns to rows, or rewrites a text and says so in a column."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from reasonforge.config import Strict

Row = dict[str, Any]


class Annotation(Strict):
    """An annotation has a literal `type`, its options, and `look`. It holds no state: what it says of a row depends on
    the traces of the row's problem at most."""

    columns: ClassVar[tuple[str, ...]] = ("prompt", "response")
    """The texts that a row must have."""
    adds: ClassVar[tuple[str, ...]]
    """The columns that it writes."""

    replace: bool = False
    """Whether columns of these names that rows have already are written over; otherwise such rows are refused."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The importable modules that it needs, for `reasonforge doctor`."""
        return ()

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files from outside the run whose content decides what it says."""
        return ()

    @abstractmethod
    def look(self, rows: Sequence[Row]) -> list[Row]:
        """What to write into each of some rows, in their order: the columns `adds`, and a text that it rewrites.

        All traces of a problem are among the rows, next to each other. Raises RequestError for a row that it cannot
        read.
        """

"""The base of all filters: one small method that keeps a graded row or gives the reason to drop it."""

from abc import abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from reasonforge.config import Operational, Strict
from reasonforge.errors import ReasonforgeError


class Example(Strict):
    """A row, and what a filter should say of it."""

    row: dict[str, Any]
    """The columns that the filter reads."""
    keep: bool
    """Whether the row should be kept."""


class Filter(Strict):
    """A filter has a literal `type`, its thresholds, and `reason`. It holds no state: `curation` does the counting."""

    columns: ClassVar[tuple[str, ...]] = ("response",)
    """The texts that a row must have."""

    examples: Annotated[list[Example], Operational()] = Field(default_factory=list)
    """Rows that show what the thresholds are for; a recipe in which the filter decides otherwise is refused.

    Where a module or a file that the filter needs is missing, as on a laptop that only plans, they are not checked;
    the stage reads its recipe again where it runs, and checks them there."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The importable modules that it needs, for `reasonforge doctor`."""
        return ()

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files from outside the run whose content decides what it says."""
        return ()

    @property
    def can_work(self) -> bool:
        """Whether all that it needs is on this machine."""
        return all(find_spec(module) is not None for module in self.needs)

    @abstractmethod
    def reason(self, row: dict[str, Any]) -> str | None:
        """Why a graded row is dropped, in a few words without figures of the row, since rows are counted by it.

        None keeps the row. Raises RequestError for a row that it cannot judge.
        """

    def check_examples(self) -> None:
        """Raises ValueError naming the first example of which the filter says otherwise."""
        if not self.examples or not self.can_work:
            return
        for number, example in enumerate(self.examples, start=1):
            name = f"example {number} of the filter {getattr(self, 'type', type(self).__name__)!r}"
            lacking = next((column for column in self.columns if not isinstance(example.row.get(column), str)), None)
            if lacking is not None:
                raise ValueError(f"{name} has no text `{lacking}`, which the filter reads")
            try:
                reason = self.reason(example.row)
            except ReasonforgeError as error:
                raise ValueError(f"{name} cannot be judged: {error}") from None
            if example.keep and reason is not None:
                raise ValueError(f"{name} should be kept, but is dropped for {reason!r}")
            if not example.keep and reason is None:
                raise ValueError(f"{name} should be dropped, but is kept")

    @model_validator(mode="wrap")
    @classmethod
    def _check_examples(cls, data: Any, handler: Any) -> Any:
        """After a subclass has checked its own fields."""
        found = handler(data)
        found.check_examples()
        return found

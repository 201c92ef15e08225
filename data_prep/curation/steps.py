"""What curation does with rows, in this order, as one configuration: each step is there only where it is given.

The stage `curate` and the commands `reasonforge data …` fill it in; `data_prep.curation.curate` does it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_prep.annotation import Annotations
from data_prep.filters import Filter, Filters
from data_prep.grading import Grader
from data_prep.overlap.decontamination import Decontamination
from data_prep.overlap.deduplication import NearDuplicates
from data_prep.selection import Selections
from data_prep.sources.rows import files_of, needs_of
from reasonforge.config import Strict

OnBadRows = Literal["refuse", "set_aside"]


class Steps(Strict):
    """Verify, annotate, filter, drop duplicates, decontaminate, drop near-duplicates, select."""

    grader: Grader | None = None
    """What extracts and verifies the answers."""
    annotate: list[Annotations] = Field(default_factory=list)
    """Columns that are added to each row."""
    filters: list[Filters] = Field(default_factory=list)
    """Applied in this order."""
    deduplicate: bool = False
    """Whether of rows with the same prompt and response only the first is kept."""
    decontaminate: Decontamination | None = None
    """How evaluation problems are found."""
    near_duplicates: NearDuplicates | None = None
    """When two rows are near-duplicates, of which only the first is kept."""
    select: list[Selections] = Field(default_factory=list)
    """Which of the rows that are left are taken, one selection after the other."""
    bad_rows: OnBadRows = "refuse"
    """Whether a line that is no row ends the work, or is set aside in `bad.jsonl` and counted."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts that a row must have when it is read, besides what verification and annotation add."""
        found = ["id"]
        if self.grader is not None:
            found += ["prompt", "answer", "response"]
        if self.deduplicate:
            found += ["prompt", "response"]
        found += [column for one in (*self.annotate, *self.filters, *self.select) for column in one.columns]
        found += self.decontaminate.columns if self.decontaminate is not None else []
        found += self.near_duplicates.columns if self.near_duplicates is not None else []
        made = {column for one in self.annotate for column in one.adds}
        made |= {"verdict", "extracted"} if self.grader is not None else set()
        return tuple(column for column in dict.fromkeys(found) if column not in made)

    @property
    def names(self) -> list[str]:
        """The steps of the funnel; where none drops a row, its reading alone."""
        given = {
            "read": self.bad_rows == "set_aside",
            "verify": self.grader is not None,
            **dict.fromkeys(self.filter_names, True),
            "deduplicate": self.deduplicate,
            "decontaminate": self.decontaminate is not None,
            "near_duplicates": self.near_duplicates is not None,
            **dict.fromkeys(self.selection_names, True),
        }
        return [name for name, there in given.items() if there] or ["read"]

    @property
    def filter_names(self) -> list[str]:
        """A name for each filter: its type, with a number where that comes again."""
        return list(_names([_kind(one) for one in self.filters]))

    @property
    def selection_names(self) -> list[str]:
        """A name for each selection."""
        return list(_names([f"select-{one.type}" for one in self.select]))

    @property
    def needs(self) -> tuple[str, ...]:
        """The importable modules that the work needs."""
        grader = self.grader.needs if self.grader is not None else ()
        others = [module for one in (*self.annotate, *self.filters, *self.select) for module in one.needs]
        files = [module for path in self._benchmarks for module in needs_of(path)]
        arrays = ("numpy",) if self.decontaminate is not None or self.near_duplicates is not None else ()
        return tuple(dict.fromkeys((*grader, *others, *files, *arrays)))

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files of the user's whose content decides what comes out."""
        others = [file for one in (*self.annotate, *self.filters, *self.select) for file in one.external_files]
        return tuple(dict.fromkeys((*others, *(file for path in self._benchmarks for file in files_of(path)))))

    @property
    def _benchmarks(self) -> list[Path]:
        return [Path(one.path) for one in self.decontaminate.against] if self.decontaminate is not None else []


def _kind(one: Filter) -> str:
    return str(getattr(one, "type", type(one).__name__))


def _names(kinds: list[str]) -> Iterator[str]:
    names: set[str] = set()
    for kind in kinds:
        name = kind
        while name in names:
            name = f"{kind}-{int(name[len(kind) + 1 :] or 1) + 1}"
        names.add(name)
        yield name

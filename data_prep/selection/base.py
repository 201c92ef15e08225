"""The base of all selections: which rows of a file are kept, where a row alone cannot tell, and why the others are not.

`curation` applies them last; `data select` applies them alone. A selection reads the file as often as it likes and
holds a few numbers a row.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeAlias

from data_prep.generation.sampling import MakeProgress
from reasonforge.config import Strict
from reasonforge.errors import RequestError
from reasonforge.files import read_json, write_json

Row: TypeAlias = Mapping[str, Any]
LengthUnit = Literal["tokens", "words", "characters"]

_FIGURES = "figures.json"


class Selection(Strict):
    """A selection has a literal `type`, its options and `choose`. It has no state: what it measures is in `scratch`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts that a row must have besides its `id`."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The importable modules that the work needs, for `reasonforge doctor`."""
        return ("numpy",)

    @property
    def external_files(self) -> tuple[Path, ...]:
        """Files from outside the run whose content decides the output."""
        return ()

    @abstractmethod
    def choose(self, rows: Path, scratch: Path, *, seed: int, progress: MakeProgress) -> Iterator[str | None]:
        """Yield for each row, in order, None where it is kept or the reason why not, in words without its figures.

        Args:
            rows: a jsonl file; each row has an `id` and `columns`.
            scratch: a directory of this selection alone, which survives a kill: costly work goes on from there, so
                call it again with the same rows, options and seed only.
            seed: decides among equals, together with the ids of the rows, never with their places.
            progress: makes a counter for each piece of the work.

        Raises RequestError, naming the row by its id, where it lacks what the selection needs.
        """

    def figures(self, scratch: Path) -> dict[str, Any]:
        """What `choose` measured, complete once it has yielded the last row: a report's figures, by name, flat."""
        path = scratch / _FIGURES
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        return found


def save_figures(scratch: Path, figures: dict[str, Any]) -> None:
    """Keep what `Selection.figures` will give."""
    write_json(scratch / _FIGURES, figures)


def lot(seed: int, name: str) -> int:
    """A number below 2**63 that decides among equals: it depends on nothing but the seed and a row's id."""
    key = f"{seed}\n{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1


def length_of(row: Row, unit: LengthUnit, column: str, where: str) -> int | None:
    """How long a row's response is; None where its token count is null. Raises RequestError where there is no count."""
    if unit == "words":
        return len(row["response"].split())
    if unit == "characters":
        return len(row["response"])
    count = row.get(column)
    if count is None and column in row:
        return None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        problem = f"found {count!r} in {column!r}" if column in row else f"no column {column!r}"
        raise RequestError(where, problem, "name a column of token counts, or set `unit` to words or characters")
    return count

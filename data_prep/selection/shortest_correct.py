"""The selection `shortest_correct`: of each problem the shortest traces that are correct."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from data_prep.generation.sampling import MakeProgress
from data_prep.selection.base import LengthUnit, Selection, length_of, lot
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ShortestCorrectSelection(Selection):
    """Keeps of each problem the `k` shortest traces whose verdict is "correct".

    Kimi k1.5 does so with k = 1 to teach short thinking (shortest rejection sampling, arXiv 2501.12599).
    """

    type: Literal["shortest_correct"] = "shortest_correct"

    k: int = Field(default=1, ge=1)
    """Traces a problem at most."""
    unit: LengthUnit = "tokens"
    """What is counted of the response: tokens as `count_column` says, words between spaces, or characters."""
    count_column: str = "completion_tokens"
    """Where a row has its number of tokens."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a row."""
        return ("problem_id", "verdict", "response")

    def choose(self, rows: Path, scratch: Path, *, seed: int, progress: MakeProgress) -> Iterator[str | None]:
        """In two passes, over the file and over 25 bytes a row."""
        import numpy as np

        problems, lengths, lots = array("q"), array("q"), array("q")
        correct = bytearray()
        for row in read_jsonl(rows):
            where = f"row {row['id']}"
            length = length_of(row, self.unit, self.count_column, where)
            if length is None:
                found = f"{self.count_column!r} is null, so which trace is shorter is not known"
                raise RequestError(where, found, "set `unit` to words or characters")
            problems.append(lot(seed, row["problem_id"]))
            lengths.append(length)
            lots.append(lot(seed, row["id"]))
            correct.append(row["verdict"] == "correct")
        problem, counts, draws = (np.asarray(one, np.int64) for one in (problems, lengths, lots))
        right = np.flatnonzero(np.frombuffer(bytes(correct), np.bool_))
        order = right[np.lexsort((draws[right], counts[right], problem[right]))]
        kept = np.zeros(len(problem), np.bool_)
        kept[order[_places(problem[order]) < self.k]] = True
        for index in range(len(kept)):
            if kept[index]:
                yield None
            else:
                yield f"not among the {self.k} shortest correct of its problem" if correct[index] else "not correct"


def _places(groups: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """The place of each item among those of its group, from 0; the members of a group stand together."""
    import numpy as np

    numbers = np.arange(len(groups))
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if len(groups) else numbers
    return numbers - np.repeat(starts, np.diff(np.append(starts, len(groups))))

"""The selection `balanced`: fair shares of a budget for every cell of difficulty × domain × length."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.generation.sampling import MakeProgress
from data_prep.selection.base import LengthUnit, Row, Selection, length_of, lot, save_figures
from data_prep.selection.shares import fill
from reasonforge.errors import RequestError, nearest
from reasonforge.files import read_jsonl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN = "unknown"
"""The cell of a row whose column or token count is null."""


class BalancedSelection(Selection):
    """Keeps as many rows of every cell as there is room for, and drops the others by lot.

    A cell gets its equal share of the budget, or all that it has; what it lacks goes to the others (`shares.fill`).
    """

    type: Literal["balanced"] = "balanced"

    rows: int | None = Field(default=None, ge=1)
    """The budget in rows; null where it is in tokens."""
    tokens: int | None = Field(default=None, ge=1)
    """The budget in tokens, as `count_column` counts them; the first row that would exceed it ends it."""
    by: list[str] = Field(default=["difficulty", "domain"])
    """The columns whose values, all together, make a cell; the annotations give them. Null is a value of its own."""
    lengths: list[int] = Field(default=[1024, 2048, 4096, 8192, 16384])
    """Bounds of the bins of the response's length, a further part of a cell: "4096-8192" is from 4096 to 8191. Empty:
    length does not count."""
    unit: LengthUnit = "tokens"
    """What the bounds count of the response: tokens as `count_column` says, words between spaces, or characters."""
    count_column: str = "completion_tokens"
    """Where a row has its number of tokens."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rows is None) == (self.tokens is None):
            found = "both are" if self.rows else "neither is"
            raise ValueError(f"the budget is `rows` or `tokens`, but {found} given; give one")
        if any(low >= high for low, high in pairwise([0, *self.lengths])):
            raise ValueError(f"lengths {self.lengths} must rise, from 1 or more")
        if not self.by and not self.lengths:
            raise ValueError("`by` and `lengths` are both empty, so there is one cell only; give one of them")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The text that is measured, where one is."""
        return ("response",) if self.lengths and self.unit != "tokens" else ()

    def choose(self, rows: Path, scratch: Path, *, seed: int, progress: MakeProgress) -> Iterator[str | None]:
        """In two passes, over the file and over 20 bytes a row."""
        table = _Table()
        for row in read_jsonl(rows):
            where = f"row {row['id']}"
            table.add(self._cell(row, where), self._weight(row, where), lot(seed, row["id"]))
        kept = table.fill(self.rows or self.tokens or 0)
        save_figures(scratch, table.figures(kept))
        reasons = [f"over its share of {name}" for name in table.names]
        for cell, keep in zip(table.cells, kept, strict=True):
            yield None if keep else reasons[cell]

    def _cell(self, row: Row, where: str) -> str:
        parts = [self._value(row, column, where) for column in self.by]
        if self.lengths:
            parts.append(self._bin(length_of(row, self.unit, self.count_column, where)))
        return "/".join(parts)

    def _value(self, row: Row, column: str, where: str) -> str:
        if column not in row:
            raise RequestError(where, f"no column {column!r}", f"annotate, or change `by`: {nearest(column, row)}")
        return UNKNOWN if row[column] is None else str(row[column])

    def _bin(self, length: int | None) -> str:
        if length is None:
            return UNKNOWN
        place = bisect_right(self.lengths, length)
        low = self.lengths[place - 1] if place else 0
        return f"{low}-{self.lengths[place]}" if place < len(self.lengths) else f"{low} and more"

    def _weight(self, row: Row, where: str) -> int:
        if self.tokens is None:
            return 1
        count = length_of(row, "tokens", self.count_column, where)
        if count is None:
            raise RequestError(where, f"{self.count_column!r} is null, so its tokens cannot be counted", "give `rows`")
        return count


@dataclass
class _Table:
    """The cell, weight and lot of every row: 4, 8 and 8 bytes."""

    numbers: dict[str, int] = field(default_factory=dict)
    cells: "array[int]" = field(default_factory=lambda: array("i"))
    weights: "array[int]" = field(default_factory=lambda: array("q"))
    lots: "array[int]" = field(default_factory=lambda: array("q"))

    @property
    def names(self) -> list[str]:
        return list(self.numbers)

    def add(self, cell: str, weight: int, draw: int) -> None:
        self.cells.append(self.numbers.setdefault(cell, len(self.numbers)))
        self.weights.append(weight)
        self.lots.append(draw)

    def fill(self, budget: int) -> "NDArray[np.bool_]":
        """Which rows fit."""
        import numpy as np

        cells, lots, weights = (np.asarray(one, one.typecode) for one in (self.cells, self.lots, self.weights))
        return fill(cells, lots, weights, budget)

    def figures(self, kept: "NDArray[np.bool_]") -> dict[str, Any]:
        """Of each cell, in the order of the names, the rows that there were and that are kept."""
        import numpy as np

        cells = np.asarray(self.cells, self.cells.typecode)
        was, now = (np.bincount(found, minlength=len(self.numbers)).tolist() for found in (cells, cells[kept]))
        return {"cells": {name: {"in": was[at], "out": now[at]} for name, at in sorted(self.numbers.items())}}

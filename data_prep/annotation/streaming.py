"""Passes rows through annotations, the traces of a problem together. `data_prep.annotation` offers `annotate`."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby

from data_prep.annotation.base import Annotation, Row
from reasonforge.errors import RequestError

BATCH_ROWS = 250
"""Rows after which those held are passed on; what comes out does not depend on it."""
BATCH_CHARACTERS = 4_000_000
"""Characters of prompts and responses after which they are passed on, where that comes first."""


def annotate(rows: Iterable[Row], annotations: Sequence[Annotation]) -> Iterator[Row]:
    """Apply annotations in their order and yield the rows in theirs, as new rows.

    A batch and the problem that it ends with are held, and 8 bytes of each problem, to see that its traces stand
    together (about 100 bytes in memory). Raises RequestError where they do not, since a pass rate would be wrong, or
    where a row has a column already that an annotation adds.
    """
    if not annotations:
        yield from rows
        return
    for batch in _whole_problems(rows):
        done = batch
        for one in annotations:
            added = one.look(done)
            done = [_with(row, new, one) for row, new in zip(done, added, strict=True)]
        yield from done


def _whole_problems(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Batches that end where a problem does."""
    seen: set[bytes] = set()
    batch: list[Row] = []
    characters = 0
    for problem, traces in groupby(rows, problem_of):
        if problem is not None:
            mark = blake2b(str(problem).encode("utf-8", "surrogatepass"), digest_size=8).digest()
            if mark in seen:
                raise RequestError(
                    f"problem {problem!r}",
                    "its traces stand in several places, with those of other problems between",
                    "sort the rows by `problem_id` before they are annotated",
                )
            seen.add(mark)
        for row in traces:
            batch.append(row)
            characters += len(str(row.get("prompt", ""))) + len(str(row.get("response", "")))
            if problem is None and _full(batch, characters):
                yield batch
                batch, characters = [], 0
        if _full(batch, characters):
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _full(batch: list[Row], characters: int) -> bool:
    return len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS


def problem_of(row: Row) -> object:
    """The problem of a row; None where it is not known; such rows are not held together."""
    return row.get("problem_id")


def _with(row: Row, new: Row, one: Annotation) -> Row:
    taken = None if one.replace else next((column for column in one.adds if column in row), None)
    if taken is not None:
        kind = str(getattr(one, "type", type(one).__name__))
        raise RequestError(
            f"row {row.get('id')}",
            f"it has a column {taken!r} already, which the annotation {kind!r} adds",
            "rename that column where the rows come from, or set `replace: true` to write over it",
        )
    return {**row, **new}

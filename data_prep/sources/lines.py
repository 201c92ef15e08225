"""The lines of a jsonl file, or of a range of its bytes, each as a row or with what is wrong with it.

`rows` and `curation` read with it. A line in memory is never longer than LINE_BYTES.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reasonforge.errors import RequestError, nearest
from reasonforge.jsonl import BadRow, Row, parse_row

Span = tuple[int, int]
"""A range of a file's bytes; the lines that begin in it belong to it."""

LINE_BYTES = 32 << 20
"""The longest line that is taken for a row."""
BLOCK_BYTES = 1 << 20
HEAD_CHARACTERS = 200
"""How much of a bad line is shown."""


@dataclass(frozen=True)
class Line:
    """A line that is not blank: its number from 1, where its first byte is, and its row, or what is wrong with it."""

    number: int
    start: int
    row: Row | BadRow
    head: str = ""
    """The beginning of a bad line, with what is not UTF-8 escaped."""


def parse_line(line: bytes) -> Row:
    """The row of a line, as `parse_row` finds it. Raises BadRow, also for a line that is too long."""
    check_length(line)
    return parse_row(line)


def check_length(line: bytes) -> None:
    """Raises BadRow for a line that is too long to be a row."""
    if len(line) > LINE_BYTES:
        limit = f"a line of over {LINE_BYTES >> 20} MiB"
        raise BadRow(limit, remedy="no row is that long: are its line breaks missing?")


def check_columns(row: Row, columns: Sequence[str]) -> None:
    """Raises BadRow for a row that lacks one of the columns, or has no text in it."""
    for column in columns:
        if column not in row:
            raise BadRow(f"no column {column!r}", remedy=nearest(column, row))
        if not isinstance(row[column], str):
            kind = f"{column!r} is no text"
            raise BadRow(kind, f"{kind}: found {json_type(row[column])}")


def json_type(value: Any) -> str:
    """What JSON calls a value's type."""
    names = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number", "list": "a list"}
    return names.get(type(value).__name__, "an object")


def lines_of(path: Path, span: Span | None = None, columns: Sequence[str] = ()) -> Iterator[Line]:
    """The lines of a file, or those that begin in a range of it; blank ones count but are not yielded.

    Args:
        span: numbers are counted from its first line.
        columns: the texts that a row must have.
    """
    with open_file(path) as handle:
        start, end = span if span is not None else (0, path.stat().st_size)
        yield from lines_in(handle, _first_line(handle, start), end, columns)


def lines_in(
    handle: IO[bytes], position: int = 0, end: float = math.inf, columns: Sequence[str] = ()
) -> Iterator[Line]:
    """As `lines_of`, from an open file or a stream that is at `position`, up to the line that begins at `end`."""
    number = 0
    while position < end and (line := handle.readline(LINE_BYTES + 1)):
        number += 1
        begun, position = position, position + len(line)
        if len(line) > LINE_BYTES and not line.endswith(b"\n"):
            position += _skip_line(handle)
        if line.strip():
            yield _line(number, begun, line, columns)


def line_before(path: Path, position: int) -> tuple[int, bytes] | None:
    """The line that ends where another begins: where it begins and what is in it; None at the file's beginning."""
    if position == 0:
        return None
    with open(path, "rb") as handle:
        start = _line_start(handle, position - 1)
        handle.seek(start)
        return start, handle.read(min(position - start, LINE_BYTES + 1))


def count_lines(path: Path, span: Span) -> int:
    """How many lines begin in a range, blank ones included."""
    start, end = span
    with open_file(path) as handle:
        position = _first_line(handle, start)
        if position >= end:
            return 0
        count = 1
        left = end - 1 - position  # a line begins after each break but one at the range's own end
        while left and (block := handle.read(min(left, BLOCK_BYTES))):
            count += block.count(b"\n")
            left -= len(block)
        return count


def spans(path: Path, size: int) -> list[Span]:
    """The file in ranges of `size` bytes; RequestError where there is no file."""
    if not path.is_file():
        raise RequestError(str(path), "no such file")
    total = path.stat().st_size
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def open_file(path: Path) -> IO[bytes]:
    """Open a file to read. Raises RequestError where that cannot be done."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise RequestError(str(path), (error.strerror or "cannot be read").lower()) from None


def _line(number: int, start: int, line: bytes, columns: Sequence[str]) -> Line:
    try:
        row = parse_line(line)
        check_columns(row, columns)
    except BadRow as error:
        head = line[: 4 * HEAD_CHARACTERS].decode("utf-8", "backslashreplace").strip()
        return Line(number, start, error, head[:HEAD_CHARACTERS])
    return Line(number, start, row)


def _first_line(handle: IO[bytes], start: int) -> int:
    """Go to the first line that begins at `start` or later."""
    handle.seek(max(start - 1, 0))
    if start:
        _skip_line(handle)  # it began before, unless the byte before the range ends it
    return handle.tell()


def _skip_line(handle: IO[bytes]) -> int:
    skipped = 0
    while part := handle.readline(BLOCK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _line_start(handle: IO[bytes], end: int) -> int:
    """Where the line begins that has its last byte, or its line break, at `end`."""
    while end > 0:
        start = max(end - BLOCK_BYTES, 0)
        handle.seek(start)
        found = handle.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0

"""Reads one column of a jsonl file, a byte range at a time and a chunk of it in memory; names every bad line.

The writers of `data_prep.formats` call it. What is accepted is what `reasonforge.jsonl` accepts; only half
characters matter in this one column alone.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from data_prep.sources.lines import LINE_BYTES, Span, check_length, spans
from reasonforge.errors import RequestError
from reasonforge.jsonl import BadRow, Row, decoder, explained_row, nothing

Text: TypeAlias = str | list[str]
"""A document: its text, or its sentences."""

CHUNK_BYTES = 4 << 20
"""What is read at once, and so about what is in memory."""


@dataclass(frozen=True)
class BadLine:
    """A line that is no document: its number in what was read, from 1, and what is wrong with it."""

    number: int
    problem: str
    remedy: str = ""


@dataclass(frozen=True)
class Chunk:
    """Documents in order, and how many lines of the file they took, bad and blank ones included."""

    documents: list[Text]
    lines: int


def document_spans(path: Path, size: int) -> list[Span]:
    """The file in ranges of `size` bytes; RequestError where there is no file, or nothing in it."""
    found = spans(path, size)
    if not found:
        raise RequestError(str(path), "empty, so it has no documents")
    return found


def read_documents(
    path: Path, span: Span, column: str, on_bad: Callable[[BadLine], None], chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Yield the documents of the lines that begin in a range; blank lines are skipped.

    Args:
        column: the key of each row that holds a text, or a list of texts.
        on_bad: is told of each line that is no document; it raises, or the line is left out.
        chunk_bytes: what is read at once; a chunk is never smaller than a line.
    """
    decode = _decoder(column)
    seen = 0
    for lines in read_lines(path, span, chunk_bytes):
        documents: list[Text] = []
        strict = all(line.isascii() for line in lines)  # a decoder that skips the other columns does not look into them
        for number, line in enumerate(lines, start=seen + 1):
            found = _document(line, column, decode, strict)
            if isinstance(found, BadLine):
                on_bad(BadLine(number, found.problem, found.remedy))
            elif found is not None:
                documents.append(found)
        seen += len(lines)
        yield Chunk(documents, len(lines))


def read_lines(path: Path, span: Span, chunk_bytes: int = CHUNK_BYTES) -> Iterator[list[bytes]]:
    """Yield the lines that begin in a range, without their ends, some `chunk_bytes` of them at a time."""
    with open(path, "rb") as handle:
        for block in _blocks(handle, span, chunk_bytes):
            lines = block.split(b"\n")
            if not lines[-1]:
                lines.pop()
            yield lines


def refuse(path: Path, span: Span, bad: BadLine) -> RequestError:
    """The error that names a bad line of a range by its number in the file."""
    return RequestError(f"{path}:{_lines_before(path, span[0]) + bad.number}", bad.problem, bad.remedy)


def sample(path: Path, column: str, count: int = 64) -> list[str]:
    """The first texts of a file, without its bad lines, to try an encoder on."""
    chunks = read_documents(path, (0, CHUNK_BYTES >> 2), column, lambda _: None, CHUNK_BYTES >> 4)
    texts = (text for chunk in chunks for one in chunk.documents for text in ([one] if isinstance(one, str) else one))
    return list(islice(texts, count))


def _blocks(handle: Any, span: Span, chunk_bytes: int) -> Iterator[bytes]:
    """The bytes of a range's lines, cut between lines; a line that is too long is cut short after LINE_BYTES."""
    start, end = span
    handle.seek(max(start - 1, 0))
    if start:
        _skip_line(handle)  # it began before, unless the byte before the range ends it
    while (position := handle.tell()) < end:
        block: bytes = handle.read(min(chunk_bytes, end - position))
        if not block:
            return
        if not block.endswith(b"\n"):
            rest: bytes = handle.readline(LINE_BYTES + 1)
            block += rest
            if len(rest) > LINE_BYTES and not rest.endswith(b"\n"):
                _skip_line(handle)
        yield block


def _skip_line(handle: Any) -> None:
    while (part := handle.readline(CHUNK_BYTES)) and not part.endswith(b"\n"):
        pass


def _document(line: bytes, column: str, decode: Callable[[bytes], Any], strict: bool) -> Text | BadLine | None:
    """What a line holds; None for a blank one."""
    try:
        if len(line) > LINE_BYTES:
            raise ValueError(len(line))
        if not strict:
            str(line, "utf-8")
        found: Text = decode(line)
        return found
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        if not line.strip():
            return None
        row = read_object(line)
        return row if isinstance(row, BadLine) else read_texts(row, column)


def read_object(line: bytes) -> Row | BadLine:
    """The row of a line that a faster decoder did not take; half characters are left to `read_texts`."""
    try:
        check_length(line)
        return explained_row(line, halves=True)
    except BadRow as bad:
        return BadLine(0, str(bad), bad.remedy)


def read_texts(row: Row, column: str) -> Text | BadLine:
    """The text, or the texts, in a column of a row."""
    if column not in row:
        return BadLine(0, f"no column {column!r}", "the columns are " + ", ".join(map(repr, sorted(row)))[:200])
    found = row[column]
    texts = found if isinstance(found, list) else [found]
    for text in texts:
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            return BadLine(0, f"{column}: found {kind}, not a text or a list of texts")
        if not _encodable(text):
            return BadLine(0, f"{column}: a lone surrogate, half of a character that UTF-8 cannot write")
    return found  # type: ignore[no-any-return]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines_before(path: Path, start: int) -> int:
    """How many lines begin before a byte of the file where one begins, or before the line that it is in."""
    count = 0
    with open(path, "rb") as handle:
        left = max(start - 1, 0)
        while left and (block := handle.read(min(left, CHUNK_BYTES))):
            count += block.count(b"\n")
            left -= len(block)
    return count + (start > 0)


@lru_cache(maxsize=4)
def _decoder(column: str) -> Callable[[bytes], Any]:
    """From a line to the column's content; anything unusual is a ValueError."""
    try:
        defstruct: Any = importlib.import_module("msgspec").defstruct
    except ImportError:
        return nothing
    decode = decoder(defstruct("Row", [("text", str | list[str])], rename={"text": column}))

    def document(line: bytes) -> Any:
        return decode(line).text

    return document

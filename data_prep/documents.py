"""Reads one column of a jsonl file, a byte range at a time and a chunk of it in memory; names every bad line.

The writers of `data_prep.formats` call it. What is accepted is strict JSON in strict UTF-8, as Python's `json` reads
it, with or without msgspec, which is only faster.
"""

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from data_prep.lines import LINE_BYTES, Span, spans
from reasonforge.errors import RequestError

Text: TypeAlias = str | list[str]
"""A document: its text, or its sentences."""

CHUNK_BYTES = 4 << 20
"""What is read at once, and so about what is in memory."""

_ONE_OBJECT = "a jsonl file holds one JSON object on each line"


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
        raise RequestError(str(path), "empty: it has no documents")
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


def read_object(line: bytes) -> dict[str, Any] | BadLine:
    """What Python's `json` makes of a line: it knows NaN, which msgspec does not, and says where the fault is."""
    if len(line) > LINE_BYTES:
        limit = f"over {LINE_BYTES >> 20} MiB long"
        return BadLine(0, limit, "no document is that long: are its line breaks missing?")
    try:
        row = json.loads(str(line, "utf-8"))
    except UnicodeDecodeError as error:
        return BadLine(0, f"not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        nul = ": a NUL byte" if line[: error.pos + 1].endswith(b"\0") else ""
        return BadLine(0, f"not JSON at column {error.colno}: {error.msg}{nul}", _ONE_OBJECT)
    except (ValueError, RecursionError) as error:
        return BadLine(0, f"not JSON that can be read ({type(error).__name__})")
    if not isinstance(row, dict):
        return BadLine(0, f"found a JSON {type(row).__name__}", _ONE_OBJECT)
    return row


def read_texts(row: dict[str, Any], column: str) -> Text | BadLine:
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
        msgspec: Any = importlib.import_module("msgspec")
    except ImportError:
        return _nothing
    row = msgspec.defstruct("Row", [("text", str | list[str])], rename={"text": column})
    decode = msgspec.json.Decoder(row).decode

    def document(line: bytes) -> Any:
        return decode(line).text

    return document


def _nothing(line: bytes) -> Any:
    raise ValueError(line[:1])

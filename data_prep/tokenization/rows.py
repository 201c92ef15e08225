"""Reads prompts and responses from a byte range of a jsonl file, some rows at a time; names every bad line.

`dataset` calls it. msgspec, where it is installed, is only faster: the rows are the same without it.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.sources.documents import BadLine, read_lines, read_object, read_texts, refuse
from data_prep.sources.lines import Span

BATCH_BYTES = 256 << 10
"""What is read at once; a batch is never smaller than a line."""


@dataclass(frozen=True)
class Chats:
    """Some rows in order: each of these has an entry for each row."""

    lines: list[bytes]
    ids: list[str]
    prompts: list[str]
    responses: list[str]
    problems: list[str]
    """Rows of one problem have the same: its `problem_id`, or the prompt where the row has none."""


def read_chats(path: Path, span: Span, batch_bytes: int = BATCH_BYTES) -> Iterator[Chats]:
    """Yield the rows of the lines that begin in a range; blank lines are skipped.

    Raises RequestError with file and line number for a line that is no row with `id`, `prompt` and `response`.
    """
    decode = _decoder()
    seen = 0
    for lines in read_lines(path, span, batch_bytes):
        rows = []
        for number, line in enumerate(lines, start=seen + 1):
            found = _row(line, decode)
            if isinstance(found, BadLine):
                raise refuse(path, span, BadLine(number, found.problem, found.remedy))
            if found is not None:
                rows.append((line, found))
        seen += len(lines)
        yield Chats(
            [line for line, _ in rows],
            [row.id for _, row in rows],
            [row.prompt for _, row in rows],
            [row.response for _, row in rows],
            [row.prompt if row.problem_id is None else row.problem_id for _, row in rows],
        )


@dataclass(frozen=True)
class _Row:
    """As msgspec's struct."""

    id: str
    prompt: str
    response: str
    problem_id: str | None


def _row(line: bytes, decode: Callable[[bytes], Any]) -> Any:
    """The row of a line; None for a blank one, BadLine for one that is none."""
    try:
        if not line.isascii():
            str(line, "utf-8")  # the decoder does not look into what it skips
        return decode(line)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        if not line.strip():
            return None
    row = read_object(line)
    if isinstance(row, BadLine):
        return row
    found: dict[str, Any] = {"problem_id": None}
    for column in ("id", "prompt", "response", *(["problem_id"] if row.get("problem_id") is not None else [])):
        if column in ("id", "problem_id") and type(row.get(column)) is int:
            row[column] = str(row[column])
        text = read_texts(row, column)
        if isinstance(text, BadLine):
            return text
        if not isinstance(text, str):
            return BadLine(0, f"{column}: found a list, not a text")
        found[column] = text
    return _Row(**found)


@lru_cache(maxsize=1)
def _decoder() -> Callable[[bytes], Any]:
    """From a line to its row; anything unusual is a ValueError."""
    try:
        msgspec: Any = importlib.import_module("msgspec")
    except ImportError:
        return _nothing
    fields = [("id", str), ("prompt", str), ("response", str), ("problem_id", str | None, None)]
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(msgspec.defstruct("Row", fields)).decode
    return decode


def _nothing(line: bytes) -> Any:
    raise ValueError(line[:1])

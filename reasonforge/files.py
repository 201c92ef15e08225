"""Files that are either whole or absent: atomic writes, canonical JSON, jsonl with line numbers in its errors."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from reasonforge.errors import RequestError
from reasonforge.jsonl import BadRow, parse_row


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, UTF-8 kept. Raises ValueError on NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nothing() -> None:
    pass


@contextmanager
def published(path: Path, *, durable: bool = True, before: Callable[[], object] = _nothing) -> Iterator[BinaryIO]:
    """A handle to write to; at the end of the block `path` is published by rename, after an error nothing is.

    Args:
        durable: flush it to the disk first.
        before: called when the file is whole, and before it is there: writes what a reader must find beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        before()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_path(path.parent)


def write_atomic(path: Path, text: str | bytes) -> None:
    """Publish `text` as `path` by rename: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path) as handle:
        handle.write(text.encode() if isinstance(text, str) else text)


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON, by rename."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file; RequestError names the file, and the line where it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(str(path), "no such file") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno}", f"not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise RequestError(str(path), f"not JSON: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise RequestError(str(path), f"not JSON that can be read ({type(error).__name__})") from None


def jsonl_line(row: dict[str, Any]) -> str:
    """A row as one line with its newline; key order is kept."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Stream rows into `path`, published by rename; returns how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with published(path) as handle:
        for row in rows:
            handle.write(jsonl_line(row).encode())
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each row of a jsonl file; blank lines are skipped.

    Raises RequestError with file and line number on a line that is no row (`reasonforge.jsonl.parse_row`).
    """
    if not path.is_file():
        raise RequestError(str(path), "no such file")
    with open(path, "rb", buffering=1 << 18) as handle:
        yield from parse_jsonl(handle, path)


def parse_jsonl(lines: Iterable[bytes], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the row of each line that is not blank, as `read_jsonl` does; `path` is for the errors."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield parse_row(line)
            except BadRow as bad:
                raise RequestError(f"{path}:{number}", str(bad), bad.remedy) from None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()

"""Files that are either whole or absent: atomic writes, canonical JSON, jsonl with line numbers in its errors."""

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError


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


def write_atomic(path: Path, text: str | bytes) -> None:
    """Publish `text` as `path` by rename: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as handle:
        handle.write(text.encode() if isinstance(text, str) else text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    fsync_path(path.parent)


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    with open(temporary, "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(jsonl_line(row))
            count += 1
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    fsync_path(path.parent)
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each row of a jsonl file; blank lines are skipped.

    Raises RequestError with file and line number on a line that is not UTF-8, not JSON or not an object.
    """
    if not path.is_file():
        raise RequestError(str(path), "no such file")
    with open(path, "rb", buffering=1 << 18) as handle:
        yield from parse_jsonl(handle, path)


def parse_jsonl(lines: Iterable[bytes], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the row of each line that is not blank, as `read_jsonl` does; `path` is for the errors.

    Rows and errors are those of Python's `json`. msgspec, where it is installed, decodes what it takes, which is part
    of what `json` takes, to equal values; only of brackets within brackets it may take three more than the thousand
    or so at which `json` stops.
    """
    decode = _decoder()
    for number, line in enumerate(lines, start=1):
        try:
            row = decode(line)
        except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
            row = None
        if isinstance(row, dict):
            yield row
        elif line.strip():
            yield _python_row(line, f"{path}:{number}")


@functools.cache
def _decoder() -> Callable[[bytes], Any]:
    try:
        msgspec: Any = importlib.import_module("msgspec.json")
    except ImportError:
        return json.loads
    return msgspec.Decoder().decode  # type: ignore[no-any-return]


def _python_row(line: bytes, where: str) -> dict[str, Any]:
    """What Python's `json` makes of a line: it knows NaN and much else that is rare, and says where the fault is."""
    one_object = "a jsonl file holds one JSON object on each line"
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise RequestError(where, f"not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise RequestError(where, f"not JSON at column {error.colno}: {error.msg}", one_object) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise RequestError(where, f"not JSON that can be read ({type(error).__name__})") from None
    if not isinstance(row, dict):
        raise RequestError(where, f"found a JSON {type(row).__name__}", one_object)
    return row


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()

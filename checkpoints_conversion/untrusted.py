"""Small files and names out of a checkpoint that may have been made to do harm: opened and read with limits."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError

MAX_JSON_BYTES = 256 << 20
"""The largest JSON that is read; the index of the largest models has some megabytes."""


def open_regular(path: Path) -> int:
    """Open a file for reading. Raises RequestError where it is none: a pipe would hold us for ever."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise RequestError(str(path), "not a regular file, so no part of a checkpoint", "get the checkpoint again")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RequestError(str(path), "no such file") from None


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file. Raises RequestError where it is larger than `limit`."""
    with open(open_regular(path), "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > limit:
            raise RequestError(str(path), f"has {size} bytes, more than any checkpoint needs", "get the file again")
        return handle.read()


def read_json(path: Path) -> Any:
    """One JSON file. Raises RequestError, naming the line where it does not parse, on all that is not JSON."""
    try:
        return json.loads(read_bytes(path, MAX_JSON_BYTES))
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno}", f"not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise RequestError(str(path), f"not JSON: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(str(path), f"not JSON that can be read ({type(error).__name__})") from None


def told(name: str) -> str:
    """A name for an error message: short, and on one line whatever it holds."""
    short = name[:100]
    return short if short.isprintable() else repr(short)


def check_inside(path: Path, directory: Path) -> None:
    """Raise RequestError where a link leads out of a directory: what it points to would travel with the checkpoint.

    Out of a snapshot in the Hugging Face hub's cache, a link may lead to the blobs of the same model.
    """
    root, target = directory.resolve(), path.resolve()
    snapshot = root.parent.name == "snapshots" and target.is_relative_to(root.parent.parent / "blobs")
    if not target.is_relative_to(root) and not snapshot:
        raise RequestError(
            str(path),
            "a link out of its directory, so a file that may not be the model's would be copied along",
            "put the file itself there, or delete the link",
        )

"""Rows of a user's file, .jsonl or .parquet, as plain JSON values; errors name the file and the line or row.

`data_prep.problems` reads problems with it.
"""

import math
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl

SUFFIXES = (".jsonl", ".parquet")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl or .parquet file in order; NaN becomes null, dates and decimals become strings.

    Raises RequestError for a missing or damaged file, another suffix, or a value that JSON cannot hold.
    """
    if path.suffix not in SUFFIXES:
        raise RequestError(str(path), f"found suffix {path.suffix!r}", "problems are read from .jsonl or .parquet")
    if not path.is_file():
        raise RequestError(str(path), "no such file", "a relative path starts at the current directory")
    rows = read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
    for index, row in enumerate(rows):
        try:
            yield {name: _json_value(value) for name, value in row.items()}
        except ValueError as error:
            raise RequestError(row_place(path, index), str(error)) from None


def row_place(path: Path, index: int) -> str:
    """Where row `index` (from 0) is, for an error: `file:line` of a jsonl, `file: row N` (from 1) of a parquet file."""
    if path.suffix != ".jsonl":
        return f"{path}: row {index + 1}"
    with open(path, "rb") as handle:
        numbers = (number for number, line in enumerate(handle, start=1) if line.strip())
        return f"{path}:{next(islice(numbers, index, None))}"


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RequestError(str(path), f"not a readable parquet file: {' '.join(str(error).split())}") from None


def _json_value(value: Any) -> Any:
    """A value as JSON can hold it. Raises ValueError for bytes, broken text and types of no JSON form."""
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value)
        return value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise ValueError(f"found a value of type {type(value).__name__}, which JSON cannot hold")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"found half a surrogate pair at character {error.start} of a text") from None

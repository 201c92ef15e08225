"""Rows of a user's file or dataset directory as plain JSON values; errors name the file and the line or row.

Files are .jsonl, also compressed (.jsonl.gz, .jsonl.zst), and .parquet; a directory is what `datasets` saved
(`Dataset.save_to_disk`). `data_prep.problems` reads problems with it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, cast

from reasonforge.errors import RequestError, nearest
from reasonforge.files import parse_jsonl

Row = dict[str, Any]

CODECS = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
"""What a jsonl file is compressed with, as pyarrow calls it, by the end of its name."""

_SAVED = "state.json"
"""What `Dataset.save_to_disk` leaves in a directory of one split."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file or a saved dataset in order; NaN becomes null, dates and decimals become strings.

    Raises RequestError for a missing or damaged file, another kind of file, or a value that JSON cannot hold.
    """
    for index, row in enumerate(_read(path)):
        try:
            yield {name: _json_value(value) for name, value in row.items()}
        except ValueError as error:
            raise RequestError(row_place(path, index), str(error)) from None


def checked_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """As `read_rows`. Raises RequestError also for a row that lacks one of the columns, or has no text in it."""
    for index, row in enumerate(read_rows(path)):
        for column in columns:
            if not isinstance(row.get(column), str):
                problem = f"no column {column!r}" if column not in row else f"{column!r} is no text"
                raise RequestError(row_place(path, index), problem, nearest(column, row))
        yield row


def row_place(path: Path, index: int) -> str:
    """Where row `index` (from 0) is, for an error: `file:line` in a jsonl file, else `file: row N` (from 1)."""
    end = _jsonl_end(path)
    if end is None:
        return f"{path}: row {index + 1}"
    with _opened(path, CODECS[end]) as handle:
        numbers = (number for number, line in enumerate(handle, start=1) if line.strip())
        return f"{path}:{next(islice(numbers, index, None))}"


def needs_of(path: Path) -> tuple[str, ...]:
    """The modules that reading this file needs."""
    if path.is_dir():
        return ("datasets",)
    return () if path.suffix == ".jsonl" else ("pyarrow",)


def files_of(path: Path) -> list[Path]:
    """The files that hold the rows: the file itself, or those of a saved dataset."""
    return sorted(found for found in path.iterdir() if found.is_file()) if path.is_dir() else [path]


def _read(path: Path) -> Iterator[Row]:
    if path.is_dir():
        return _read_saved(path)
    if not path.is_file():
        raise RequestError(str(path), "no such file", "a relative path starts at the current directory")
    end = _jsonl_end(path)
    if end is not None:
        return _read_jsonl(path, CODECS[end])
    if path.suffix == ".parquet":
        return _read_parquet(path)
    kinds = f"{', '.join(CODECS)}, .parquet, or a directory that `datasets` saved"
    raise RequestError(str(path), f"found suffix {path.suffix!r}", f"rows are read from {kinds}")


def _jsonl_end(path: Path) -> str | None:
    return next((end for end in CODECS if path.name.endswith(end)), None)


def _read_jsonl(path: Path, codec: str | None) -> Iterator[Row]:
    with _opened(path, codec) as handle:
        try:
            yield from parse_jsonl(handle, path)
        except OSError as error:
            raise RequestError(str(path), f"not a whole {codec} file: {' '.join(str(error).split())}") from None


@contextmanager
def _opened(path: Path, codec: str | None) -> Iterator[BufferedReader]:
    """A jsonl file's plain bytes, decompressed as they are read."""
    if codec is None:
        with open(path, "rb") as handle:
            yield handle
        return
    import pyarrow as pa

    with pa.CompressedInputStream(pa.OSFile(str(path), "rb"), codec) as stream:
        yield BufferedReader(cast(Any, stream), 1 << 20)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # else about all of it stays in memory
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RequestError(str(path), f"not a readable parquet file: {' '.join(str(error).split())}") from None


def _read_saved(path: Path) -> Iterator[Row]:
    """A split that `datasets` saved, memory-mapped, a batch at a time."""
    from datasets import load_from_disk

    splits = sorted(found.parent.name for found in path.glob(f"*/{_SAVED}"))
    if not (path / _SAVED).is_file():
        remedy = f"name one of: {', '.join(str(path / name) for name in splits)}" if splits else ""
        raise RequestError(str(path), "no split of a dataset that `datasets` saved", remedy)
    try:
        dataset = load_from_disk(str(path)).with_format("arrow")
        for batch in dataset.iter(4096):
            yield from batch.to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(str(path), f"not a readable dataset: {' '.join(str(error).split())}") from None


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

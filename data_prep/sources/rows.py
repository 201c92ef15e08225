"""Rows of a user's file, dataset directory or dataset on the Hub as plain JSON values; errors name the line or row.

Files are .jsonl, also compressed (.jsonl.gz, .jsonl.zst), and .parquet; a directory is what `datasets` saved
(`Dataset.save_to_disk`); a name on the Hub is `hub:OWNER/NAME` (`hub`). Problems, traces and benchmarks are
read with it. A batch of rows is in memory, never all.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from data_prep.sources.hub import BATCH_ROWS, is_hub, read_hub
from data_prep.sources.lines import Line, check_columns, count_lines, lines_in, lines_of, open_file
from reasonforge.errors import RequestError, nearest
from reasonforge.files import jsonl_line, published
from reasonforge.jsonl import BadRow, Row

CODECS = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
"""What a jsonl file is compressed with, as pyarrow calls it, by the end of its name."""

_SAVED = "state.json"
"""What `Dataset.save_to_disk` leaves in a directory of one split."""
_INDEX = re.compile(r"-?\d+")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a source in order; NaN becomes null, dates and decimals become strings.

    Raises RequestError for a missing or damaged file, another kind of file, or a value that JSON cannot hold.
    """
    for line in read_lines(path):
        yield good_row(path, line)


def read_lines(path: Path) -> Iterator[Line]:
    """As `read_rows`, each with its number (of the line in a jsonl file, else of the row, from 1), and with what is
    wrong with it where it is no row."""
    end = _jsonl_end(path)
    if end is not None and not is_hub(path) and path.is_file():
        yield from _read_jsonl(path, CODECS[end])
        return
    for number, row in enumerate(_read(path), start=1):
        try:
            yield Line(number, 0, {name: _json_value(value) for name, value in row.items()})
        except BadRow as error:
            yield Line(number, 0, error)


def checked_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """As `read_rows`. Raises RequestError also for a row that lacks one of the columns, or has no text in it."""
    for _, row in checked_lines(path, columns):
        yield row


def checked_lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """As `checked_rows`, each with the number that `place_of` takes."""
    for line in read_lines(path):
        row = good_row(path, line)
        try:
            check_columns(row, columns)
        except BadRow as error:
            raise refuse(path, line.number, error) from None
        yield line.number, row


def good_row(path: Path, line: Line) -> Row:
    """The row of a line. Raises RequestError where it is none."""
    if isinstance(line.row, BadRow):
        raise refuse(path, line.number, line.row)
    return line.row


def refuse(path: Path, number: int, bad: BadRow) -> RequestError:
    """The error that names a bad row."""
    return RequestError(place_of(path, number), str(bad), bad.remedy)


def place_of(path: Path, number: int) -> str:
    """Where a row is, for an error: `file:line` in a jsonl file, else `file: row N`."""
    return f"{path}:{number}" if _jsonl_end(path) and not is_hub(path) else f"{path}: row {number}"


def pick(row: Row, column: str | None, *, needed: bool) -> Any:
    """The value of a column, or of a dotted name within one (`messages.-1.content`); null for no column.

    Raises BadRow where it is needed and not there.
    """
    if column is None:
        return None
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and _INDEX.fullmatch(part) and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        elif needed:
            raise BadRow(f"no column {column!r}", remedy=nearest(column, row))
        else:
            return None
    return value


@dataclass(frozen=True)
class Source:
    """A plain jsonl file of rows with ids."""

    path: Path
    origin: Path
    """What the user calls it: the file itself, or what it is a copy of, with each row on the line of its number."""
    bad: Path | None = None
    """Of a copy, the rows of its origin that it lacks, as `bad.jsonl` tells them."""


def copy_rows(
    source: Path, columns: Mapping[str, str], destination: Path, *, bad: Path | None = None, prefix: str = ""
) -> int:
    """Write a source's rows as plain jsonl, by rename, each on the line of its number; returns how many there are.

    Args:
        columns: which of their columns are ours (ours: theirs, see `pick`).
        bad: where bad rows are set aside; without it the first one raises RequestError with its place.
        prefix: what the id begins with of a row that has none and gets its number; it tells several sources apart.
    """
    used, count, lines = set(columns.values()), 0, 0
    destination.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        handle = files.enter_context(published(destination))
        aside = files.enter_context(published(bad)) if bad is not None else None  # is there before the copy is
        for line in read_lines(source):
            try:
                row = _renamed(line, columns, used, prefix)
            except BadRow as error:
                if aside is None:
                    raise refuse(source, line.number, error) from None
                aside.write(bad_line(source, line, error))
                continue
            handle.write(b"\n" * (line.number - lines - 1) + jsonl_line(row).encode())
            count, lines = count + 1, line.number
    return count


def _renamed(line: Line, columns: Mapping[str, str], used: set[str], prefix: str) -> Row:
    if isinstance(line.row, BadRow):
        raise line.row
    ours = {name: pick(line.row, column, needed=True) for name, column in columns.items()}
    named = {**{name: value for name, value in line.row.items() if name not in used}, **ours}
    name = named.get("id")
    given = isinstance(name, str | int) and not isinstance(name, bool) and name != ""
    named["id"] = str(name) if given else f"{prefix}{line.number}"
    return named


def bad_line(source: Path, line: Line, bad: BadRow) -> bytes:
    """A row as `bad.jsonl` tells it: its file and line, and what is wrong with it."""
    told = {"file": source.name, "line": line.number, "reason": bad.kind, "problem": str(bad), "head": line.head}
    return jsonl_line(told).encode()


def has_ids(path: Path) -> bool:
    """Whether a file is plain jsonl whose first row has a text as its `id`, so that it can be taken as it is."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    first = next((line.row for line in lines_of(path) if not isinstance(line.row, BadRow)), None)
    return first is None or isinstance(first.get("id"), str)


def count_rows(path: Path) -> int:
    """How many rows there are, about, where that is soon known (jsonl that is not compressed, parquet); else 0."""
    if path.suffix == ".jsonl" and path.is_file():
        return count_lines(path, (0, path.stat().st_size))
    if path.suffix == ".parquet" and path.is_file():
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError):  # said when it is read
            return 0
    return 0


def needs_of(path: Path) -> tuple[str, ...]:
    """The modules that reading this source needs."""
    if is_hub(path) or path.is_dir():
        return ("datasets",)
    return () if path.suffix == ".jsonl" else ("pyarrow",)


def files_of(path: Path) -> list[Path]:
    """The files that hold the rows: the file itself, or those of a saved dataset; none of the Hub's."""
    if is_hub(path):
        return []
    return sorted(found for found in path.iterdir() if found.is_file()) if path.is_dir() else [path]


def _read(path: Path) -> Iterator[Row]:
    if is_hub(path):
        return read_hub(path)
    if path.is_dir():
        return _read_saved(path)
    if not path.is_file():
        raise RequestError(str(path), "no such file", "a relative path starts at the current directory")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    kinds = f"{', '.join(CODECS)}, .parquet, a directory that `datasets` saved, or hub:OWNER/NAME"
    raise RequestError(str(path), f"found suffix {path.suffix!r}", f"rows are read from {kinds}")


def _jsonl_end(path: Path) -> str | None:
    return next((end for end in CODECS if path.name.endswith(end)), None)


def _read_jsonl(path: Path, codec: str | None) -> Iterator[Line]:
    with _opened(path, codec) as handle:
        try:
            yield from lines_in(handle)
        except OSError as error:
            raise RequestError(str(path), f"not a whole {codec} file: {' '.join(str(error).split())}") from None


@contextmanager
def _opened(path: Path, codec: str | None) -> Iterator[IO[bytes]]:
    """A jsonl file's plain bytes, decompressed as they are read."""
    if codec is None:
        with open_file(path) as handle:
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
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RequestError(str(path), f"not a readable parquet file: {' '.join(str(error).split())}") from None


def _read_saved(path: Path) -> Iterator[Row]:
    """A split that `datasets` saved, memory-mapped, a batch at a time."""
    from datasets import load_from_disk

    splits = sorted(found.parent.name for found in path.glob(f"*/{_SAVED}"))
    if not (path / _SAVED).is_file():
        remedy = f"name one of: {', '.join(str(path / name) for name in splits)}" if splits else "name a file in it"
        raise RequestError(str(path), "no split of a dataset that `datasets` saved", remedy)
    try:
        dataset = load_from_disk(str(path)).with_format("arrow")
        for batch in dataset.iter(BATCH_ROWS):
            yield from batch.to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(str(path), f"not a readable dataset: {' '.join(str(error).split())}") from None


def _json_value(value: Any) -> Any:
    """A value as JSON can hold it. Raises BadRow for bytes, broken text and types of no JSON form."""
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
    raise BadRow("no JSON value", f"found a value of type {type(value).__name__}, which JSON cannot hold")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"a lone surrogate at character {error.start} of a text, half of what UTF-8 can write"
        raise BadRow("a lone surrogate", problem) from None

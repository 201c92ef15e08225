"""Rows of a tokens.parquet in the order of their bins, in chunks, with the loss mask rolled onto the labels.

The writers `nemo_packed` and `bridge_packed` turn the chunks into their formats. Bins take rows from all over the
input, so each row is written to its place in a nameless scratch file, which is then read from front to back: memory
is that of a chunk and of a few numbers a row.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_prep.packing import Packing, pack
from reasonforge.errors import RequestError
from reasonforge.files import write_jsonl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

READ_ROWS = 256
"""Rows of the input that are in memory at once."""
CHUNK_TOKENS = 1 << 24
"""Tokens of bins that are in memory at once."""


@dataclass(frozen=True)
class Chunk:
    """Some bins, whole and one after the other.

    Args:
        ids: tokens, int32 of shape [tokens].
        mask: whether the token that follows inside the row is learned, bool of shape [tokens]; False at a row's end.
        rows: tokens of each row, int64 of shape [rows].
        bins: rows of each bin, int64 of shape [bins].
    """

    ids: "NDArray[np.int32]"
    mask: "NDArray[np.bool_]"
    rows: "NDArray[np.int64]"
    bins: "NDArray[np.int64]"

    @property
    def bin_starts(self) -> "NDArray[np.int64]":
        """Where each bin begins in `ids`, and the end of the last; of shape [bins + 1]."""
        return _starts(self.rows)[_starts(self.bins)]

    @property
    def row_starts(self) -> "NDArray[np.int64]":
        """Where each row begins, counted from the beginning of its bin; of shape [rows]."""
        import numpy as np

        return _starts(self.rows)[:-1] - np.repeat(self.bin_starts[:-1], self.bins)


@dataclass(frozen=True)
class PackedRows:
    """A tokens.parquet and the bins of its rows.

    Args:
        tokens: the file, with `input_ids`, `completion_mask` and `id`.
        lengths: tokens of each row in the file, int64.
        kept: numbers of the rows that are packed, ascending; `packing` counts only these.
        packing: their bins, in which a row counts one token less: the last one is only a label.
        dropped: how many rows were left out, by reason.
    """

    tokens: Path
    lengths: "NDArray[np.int64]"
    kept: "NDArray[np.int64]"
    packing: Packing
    dropped: dict[str, int]

    def metadata(self) -> dict[str, Any]:
        """What NeMo and Megatron-Bridge keep about a packed file (their `create_packing_strategy`)."""
        packing = self.packing
        return {
            "dataset_max_seqlen": packing.longest,
            "max_samples_per_bin": int((packing.starts[1:] - packing.starts[:-1]).max()),
            "packing_factor": round(len(packing.order) / len(packing), 2),
            "packing_efficiency": round(packing.efficiency * 100, 2),
            "pack_size": packing.capacity,
            "min_packed_seqlen": int(packing.filled.min()),
        }

    def summary(self) -> dict[str, Any]:
        """The figures for a report, and how many rows were dropped for what."""
        return {**self.packing.summary(), "dropped": self.dropped}

    def chunks(self, scratch: Path, bins: int) -> Iterator[Chunk]:
        """All bins in their order.

        Args:
            scratch: a directory that has room for 4 bytes a token; a kill leaves nothing there.
            bins: how many are in a chunk, less in the last.
        """
        import numpy as np

        order = self.kept[self.packing.order]
        places = np.full(len(self.lengths), -1, np.int64)
        row_lengths = self.lengths[order]
        places[order] = _starts(row_lengths)[:-1]
        row_counts = self.packing.starts[1:] - self.packing.starts[:-1]
        with tempfile.TemporaryFile(dir=scratch, buffering=0) as handle:
            self._scatter(handle, places)
            handle.seek(0)
            for first in range(0, len(self.packing), bins):
                begin, end = self.packing.starts[[first, min(first + bins, len(self.packing))]]
                rows = row_lengths[begin:end]
                ids = np.fromfile(handle, np.int32, int(rows.sum()))
                mask = ids < 0
                np.invert(ids, out=ids, where=mask)
                yield Chunk(ids, mask, rows, row_counts[first : first + bins])

    def _scatter(self, handle: IO[bytes], places: "NDArray[np.int64]") -> None:
        """Write each row to its place in the scratch file; a token whose label is learned as its complement, below 0.

        Args:
            handle: the scratch file.
            places: for each row how many tokens come before it, or -1 where it is dropped.
        """
        import numpy as np

        row = 0
        for ids, mask, lengths in _batches(self.tokens):
            ends = np.cumsum(lengths)
            learned = np.empty(len(mask), np.bool_)
            learned[:-1] = mask[1:]
            learned[ends[lengths > 0] - 1] = False
            marked = np.where(learned, ~ids, ids).view(np.uint8).data
            starts = ends - lengths
            for start, end, place in zip(starts.tolist(), ends.tolist(), places[row:].tolist(), strict=False):
                if place >= 0:
                    _write_at(handle, marked[4 * start : 4 * end], 4 * place)
            row += len(lengths)


def pack_file(tokens: Path, pack_size: int, *, seed: int = 0, dropped: Path | None = None) -> PackedRows:
    """Decide the bins of a tokens.parquet; only its lengths are read.

    Args:
        tokens: what `data_prep.tokenization.dataset` writes.
        pack_size: the most tokens in a bin, where a row counts one less than it has.
        seed: of the order of the bins.
        dropped: a jsonl file to publish with the rows that are left out (`row`, `id`, `tokens`, `reason`): those of
            more than `pack_size` + 1 tokens, and those of one token, which has no label.

    Raises RequestError for a file that is not such a parquet, and where no row is left; without `dropped`, also for
    the first row that would be left out.
    """
    import numpy as np

    lengths = _read_lengths(tokens)
    fits = (lengths >= 2) & (lengths <= pack_size + 1)
    reasons: Counter[str] = Counter()
    if dropped is not None:
        unfit = np.flatnonzero(~fits).tolist()
        names = _ids(tokens, unfit)
        rows = [
            {"row": row, "id": names[row], "tokens": int(lengths[row]), "reason": _reason(int(lengths[row]))}
            for row in unfit
        ]
        reasons.update(str(row["reason"]) for row in rows)
        write_jsonl(dropped, rows)
    elif not fits.all():
        row = int(np.argmin(fits))
        problem = f"has {lengths[row]} tokens, and a bin of {pack_size} takes rows of 2 to {pack_size + 1}"
        raise RequestError(f"{tokens}: row {row} ({_ids(tokens, [row])[row]!r})", problem, "drop it or raise pack_size")
    kept = np.flatnonzero(fits)
    if not len(kept):
        raise RequestError(str(tokens), f"it has no row that a bin of {pack_size} tokens takes")
    counts = dict(sorted(reasons.items()))
    return PackedRows(tokens, lengths, kept, pack(lengths[kept] - 1, pack_size, seed=seed), counts)


def bins_in_chunk(pack_size: int, at_most: int) -> int:
    """How many bins fit into the memory of a chunk, at least one."""
    return max(1, min(at_most, CHUNK_TOKENS // pack_size))


def _reason(tokens: int) -> str:
    return "over_pack_size" if tokens > 1 else "no_label"


def _write_at(handle: IO[bytes], data: memoryview, place: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(handle.fileno(), data[written:], place + written)


def _starts(lengths: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """Where each piece begins, and the end of the last."""
    import numpy as np

    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))


def _read_lengths(tokens: Path) -> "NDArray[np.int64]":
    import numpy as np

    lengths = [
        np.diff(batch.column(0).offsets.to_numpy()).astype(np.int64) for batch in _read(tokens, ["completion_mask"])
    ]
    return np.concatenate(lengths) if lengths else np.empty(0, np.int64)


def _batches(
    tokens: Path,
) -> "Iterator[tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]]":
    """Tokens, mask and lengths of some rows at a time; RequestError names the first row that is not sound."""
    import numpy as np

    row = 0
    for batch in _read(tokens, ["input_ids", "completion_mask"]):
        (ids, lengths), (mask, mask_lengths) = (_flat(batch.column(name)) for name in batch.schema.names)
        if not np.array_equal(lengths, mask_lengths):
            raise _unsound(tokens, row + int(np.argmax(lengths != mask_lengths)), "has a mask of another length")
        wrong = (ids < 0) | ((mask & ~1) != 0)
        if wrong.any():
            at = int(np.searchsorted(np.cumsum(lengths), np.argmax(wrong), side="right"))
            raise _unsound(tokens, row + at, "has a token below 0 or a mask that is neither 0 nor 1")
        yield ids, mask.astype(np.bool_), lengths
        row += len(lengths)


def _unsound(tokens: Path, row: int, problem: str) -> RequestError:
    return RequestError(f"{tokens}: row {row} ({_ids(tokens, [row])[row]!r})", problem, "tokenize the data again")


def _flat(lists: Any) -> "tuple[NDArray[Any], NDArray[np.int64]]":
    """The values of all lists one after the other, and the length of each."""
    import numpy as np

    offsets = lists.offsets.to_numpy()
    values = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
    return values.to_numpy(zero_copy_only=False), np.diff(offsets).astype(np.int64)


def _ids(tokens: Path, rows: list[int]) -> dict[int, str]:
    """The ids of some rows, ascending."""
    found: dict[int, str] = {}
    first, position = 0, 0
    for batch in _read(tokens, ["id"]):
        while position < len(rows) and rows[position] < first + len(batch):
            found[rows[position]] = batch.column(0)[rows[position] - first].as_py()
            position += 1
        first += len(batch)
    return found


def _read(tokens: Path, columns: list[str]) -> Iterator[Any]:
    """Some columns of a tokens.parquet, READ_ROWS rows at a time; RequestError where it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"input_ids": pa.list_(pa.int32()), "completion_mask": pa.list_(pa.int8()), "id": pa.string()}
    if not tokens.is_file():
        raise RequestError(str(tokens), "no such file")
    try:
        # With pre_buffer, which is the default, the bytes of the whole file would stay in memory.
        with pq.ParquetFile(tokens, pre_buffer=False, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            for name, kind in types.items():
                index = schema.get_field_index(name)
                if index < 0 or not schema.field(index).type.equals(kind):
                    found = f"of type {schema.field(index).type}" if index >= 0 else "missing"
                    raise RequestError(
                        str(tokens), f"its column {name!r} is {found}", f"reasonforge tokenizes into {kind}"
                    )
            for batch in file.iter_batches(READ_ROWS, columns=columns, use_threads=False):
                for name in columns:
                    column = batch.column(name)
                    if column.null_count or (name != "id" and column.values.null_count):
                        raise RequestError(str(tokens), f"its column {name!r} has nulls", "tokenize the data again")
                yield batch.select(columns)
    except pa.ArrowInvalid as error:
        problem = " ".join(str(error).split())[:200]
        raise RequestError(str(tokens), f"it cannot be read as parquet: {problem}") from None

"""Writes tokens.parquet: a row for each training example, with its token ids, its completion mask and its id.

`data_prep.tokenization.dataset` writes it; `recipes.engines` and the packed formats read it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from data_prep.tokenization.chat import Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP_ROWS = 1000
"""Rows after which a row group ends, with the batch that is being written."""
GROUP_TOKENS = 1 << 22
"""The same in tokens: it bounds the memory of writers and readers."""


class TokensWriter:
    """Writes batches as a parquet file; the same batches give the same bytes with one version of pyarrow.

    Columns: `input_ids` (list of int32), `completion_mask` (list of int8, 0 in the prompt and 1 in the completion) and
    `id` (string). Use it as a context manager.
    """

    def __init__(self, handle: BinaryIO) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(handle, _schema(), compression="zstd")
        self._batches: list[tuple[Batch, Sequence[str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, batch: Batch, ids: Sequence[str]) -> None:
        """Write the rows of a batch; `ids` are theirs."""
        self._batches.append((batch, ids))
        rows = sum(len(ids) for _, ids in self._batches)
        if rows >= GROUP_ROWS or sum(len(batch.ids) for batch, _ in self._batches) >= GROUP_TOKENS:
            self._flush()

    def _flush(self) -> None:
        import numpy as np

        batches, self._batches = self._batches, []
        names = [name for _, ids in batches for name in ids]
        if names:
            ids = np.concatenate([batch.ids for batch, _ in batches])
            lengths = np.concatenate([batch.lengths for batch, _ in batches])
            prompts = np.concatenate([batch.prompts for batch, _ in batches])
            self._writer.write_table(_table(ids, lengths, prompts, names), row_group_size=len(names))


def split(path: Path, chosen: "NDArray[np.bool_]", kept: BinaryIO, taken: BinaryIO) -> None:
    """Write the rows of a tokens.parquet into two: `taken` gets those that are `chosen` (bool of shape [rows])."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        pq.ParquetFile(path) as source,
        pq.ParquetWriter(kept, _schema(), compression="zstd") as rest,
        pq.ParquetWriter(taken, _schema(), compression="zstd") as apart,
    ):
        row = 0
        for group in range(source.num_row_groups):
            table = source.read_row_group(group, use_threads=False)
            here = chosen[row : row + len(table)]
            row += len(table)
            for writer, wanted in ((rest, ~here), (apart, here)):
                if wanted.any():
                    writer.write_table(table.filter(pa.array(wanted)), row_group_size=len(here))


def completion_mask(lengths: "NDArray[np.int64]", prompts: "NDArray[np.int64]") -> "NDArray[np.int8]":
    """For each token of some rows whether it is learned: 0 in the prompts and 1 after them; of shape [tokens]."""
    import numpy as np

    runs = np.stack((prompts, lengths - prompts), axis=1).ravel()
    return np.repeat(np.tile(np.array([0, 1], np.int8), len(lengths)), runs)


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [("input_ids", pa.list_(pa.int32())), ("completion_mask", pa.list_(pa.int8())), ("id", pa.string())]
    )


def _table(
    ids: "NDArray[np.int32]", lengths: "NDArray[np.int64]", prompts: "NDArray[np.int64]", names: Sequence[str]
) -> Any:
    import numpy as np
    import pyarrow as pa

    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(completion_mask(lengths, prompts))),
        pa.array(names, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=_schema())

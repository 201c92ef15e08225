"""Megatron-Bridge's packed sequences: a parquet file, as its GPTSFTPackedParquetDataset reads it.

What makes training data for the `megatron_bridge` engine calls it.
"""

from functools import partial
from pathlib import Path
from typing import Any

from data_prep.formats.packed_rows import Chunk, bins_in_chunk, pack_file
from reasonforge.errors import RequestError
from reasonforge.files import published, write_json

GROUP_BINS = 500
"""Bins in a row group, which is what the reader loads at once; fewer where bins are so large that it would be heavy."""


def write_bridge_packed(
    tokens: Path, destination: Path, *, pack_size: int, seed: int = 0, dropped: Path | None = None
) -> dict[str, Any]:
    """Pack a tokens.parquet into Megatron-Bridge's format; returns the packing's figures.

    Two files are published by rename: `destination`, a row for each bin, and beside it STEM_metadata.json, Bridge's
    list of one entry on it (STEM: without .parquet or .idx.parquet). The columns are `input_ids` (list of int64, the
    tokens of all rows), `loss_mask` (int8, for each token whether the next one is learned; rolled already, 0 at each
    row's end) and `seq_start_id` (int64, where each row begins), in row groups of 500 with snappy: what
    `megatron/bridge/data/packing/parquet.py` (August 2026) writes.

    Memory is bounded by a row group of at most 16.8 M tokens, with a few numbers for each row; on the disk, 4 bytes a
    token beside `destination` meanwhile.

    Args:
        tokens: what `data_prep.tokenization.dataset` writes.
        destination: ends in .parquet, best in .idx.parquet.
        pack_size: the most tokens in a bin, where a row counts one less than it has; Bridge's packed_sequence_size.
        seed: of the order of the bins.
        dropped: where rows that no bin takes are listed; without it they are refused.

    Raises RequestError as `pack_file` does, and for a destination of another kind.
    """
    import pyarrow.parquet as pq

    if destination.suffix != ".parquet":
        raise RequestError(str(destination), "Megatron-Bridge takes packed sequences from .parquet", "name it so")
    packed = pack_file(tokens, pack_size, seed=seed, dropped=dropped)
    group = bins_in_chunk(pack_size, GROUP_BINS)
    metadata = destination.with_name(f"{destination.stem.removesuffix('.idx')}_metadata.json")
    with (
        published(destination, before=partial(write_json, metadata, [packed.metadata()])) as handle,
        pq.ParquetWriter(handle, _schema(), compression="snappy") as writer,
    ):
        for chunk in packed.chunks(destination.parent, group):
            writer.write_table(_table(chunk), row_group_size=group)
    return packed.summary()


def _schema() -> Any:
    import pyarrow as pa

    integers, bytes_ = pa.list_(pa.int64()), pa.list_(pa.int8())
    return pa.schema([("input_ids", integers), ("loss_mask", bytes_), ("seq_start_id", integers)])


def _table(chunk: Chunk) -> Any:
    """A row for each bin."""
    import numpy as np
    import pyarrow as pa

    tokens = pa.array(chunk.bin_starts.astype(np.int32))
    rows = pa.array(np.concatenate(([0], np.cumsum(chunk.bins))).astype(np.int32))
    columns = [
        pa.ListArray.from_arrays(tokens, pa.array(chunk.ids.astype(np.int64))),
        pa.ListArray.from_arrays(tokens, pa.array(chunk.mask.view(np.int8))),
        pa.ListArray.from_arrays(rows, pa.array(chunk.row_starts)),
    ]
    return pa.Table.from_arrays(columns, schema=_schema())

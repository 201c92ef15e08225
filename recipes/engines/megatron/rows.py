"""A tokens.parquet as flat files that every process maps into its memory, and the order in which its rows are trained.

`data` makes batches of it; the order is a pure function of seed and position, so any process and any attempt knows it.
"""

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from reasonforge.errors import RequestError
from reasonforge.files import fsync_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_READ_ROWS = 1000
_IDS, _MASK, _STARTS = "ids.int32", "mask.uint8", "starts.npy"


@dataclass(frozen=True)
class Rows:
    """Tokenized rows: row r has the tokens `ids[starts[r] : starts[r + 1]]`."""

    tokens: Path
    """The parquet file that they come from."""
    ids: "NDArray[np.int32]"
    mask: "NDArray[np.uint8]"
    """1 where the token belongs to the completion."""
    starts: "NDArray[np.int64]"

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> "NDArray[np.int64]":
        """Predictions of each row: one less than it has tokens."""
        import numpy as np

        return np.asarray(np.diff(self.starts) - 1)

    @cached_property
    def learned(self) -> "NDArray[np.int64]":
        """Tokens of each row that the loss is on."""
        import numpy as np

        sums = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        return np.asarray(sums[self.starts[1:]] - sums[self.starts[:-1]] - self.mask[self.starts[:-1]])

    def names(self, rows: "list[int]") -> list[str]:
        """The ids of some rows."""
        import pyarrow.parquet as pq

        column = pq.read_table(self.tokens, columns=["id"]).column(0)
        return [str(column[row].as_py()) for row in rows]


@dataclass
class Order:
    """Row after row of shuffled epochs: each is a permutation of its own. numpy promises that RandomState's stay."""

    rows: int
    seed: int
    _epoch: int = -1
    _shuffled: "NDArray[np.int64] | None" = None

    def __call__(self, position: int) -> int:
        """The row at a position, from 0 and without end."""
        import numpy as np

        epoch, place = divmod(position, self.rows)
        if epoch != self._epoch or self._shuffled is None:
            self._shuffled, self._epoch = np.random.RandomState([self.seed, epoch]).permutation(self.rows), epoch
        return int(self._shuffled[place])

    def batch(self, number: int, size: int) -> list[int]:
        """The rows of a batch, from 0."""
        return [self(position) for position in range(number * size, (number + 1) * size)]


def unfold(tokens: Path, directory: Path) -> None:
    """Write a tokens.parquet as flat files into a directory that appears whole, by rename; as a stream.

    Raises RequestError for a row of less than two tokens, which predicts nothing, and where there is no row.
    """
    import numpy as np
    import pyarrow.parquet as pq

    temporary = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    lengths = []
    with open(temporary / _IDS, "wb") as ids, open(temporary / _MASK, "wb") as masks:
        for batch in pq.ParquetFile(tokens).iter_batches(_READ_ROWS, columns=["input_ids", "completion_mask"]):
            flat, mask = (batch.column(name).flatten() for name in range(2))
            ids.write(flat.to_numpy(zero_copy_only=False).astype(np.int32).tobytes())
            masks.write(mask.to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())
            lengths.append(np.asarray(batch.column(0).value_lengths()))
    every = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    if not len(every) or every.min() < 2:
        said = "has a row of less than two tokens, which predicts nothing" if len(every) else "has no rows"
        shutil.rmtree(temporary)
        raise RequestError(str(tokens), said, "tokenize the data again")
    np.save(temporary / _STARTS, np.concatenate([[0], np.cumsum(every, dtype=np.int64)]))
    for path in temporary.iterdir():
        fsync_path(path)
    temporary.rename(directory)


def map_rows(tokens: Path, directory: Path) -> Rows:
    """The rows that `unfold` wrote, mapped."""
    import numpy as np

    starts = np.load(directory / _STARTS)
    ids = np.memmap(directory / _IDS, np.int32, "r", shape=(int(starts[-1]),))
    mask = np.memmap(directory / _MASK, np.uint8, "r", shape=(int(starts[-1]),))
    return Rows(tokens, ids, mask, starts)

"""Sequence packing: rows go into bins of one capacity so that few tokens are wasted, and the bins are shuffled.

The writers of packed formats in `data_prep.formats` call it with the rows' lengths; it touches no files.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from reasonforge.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Packing:
    """Which rows are in which bin; bin i holds the rows `order[starts[i] : starts[i + 1]]`.

    Args:
        capacity: the most tokens in a bin.
        order: every row's number once, int64 of shape [rows]; bin after bin, ascending inside a bin.
        starts: where each bin begins in `order`, and the end of the last; int64 of shape [bins + 1].
        filled: tokens in each bin, int64 of shape [bins].
        longest: tokens of the longest row, 0 where there is none.
    """

    capacity: int
    order: "NDArray[np.int64]"
    starts: "NDArray[np.int64]"
    filled: "NDArray[np.int64]"
    longest: int

    def __len__(self) -> int:
        return len(self.filled)

    def __iter__(self) -> "Iterator[NDArray[np.int64]]":
        """The rows of each bin, in the order of the bins."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.order[start:end]

    @property
    def wasted(self) -> int:
        """Tokens of capacity that stay empty, over all bins."""
        return len(self) * self.capacity - int(self.filled.sum())

    @property
    def efficiency(self) -> float:
        """The part of the capacity that is filled, 0 to 1; 1 where there are no bins."""
        return 1 - self.wasted / (len(self) * self.capacity) if len(self) else 1.0

    def summary(self) -> dict[str, Any]:
        """The figures for a report: counts of rows and bins, tokens, and what is wasted."""
        sizes = self.starts[1:] - self.starts[:-1]
        return {
            "capacity": self.capacity,
            "rows": len(self.order),
            "bins": len(self),
            "tokens": int(self.filled.sum()),
            "wasted": self.wasted,
            "efficiency": round(self.efficiency, 6),
            "rows_per_bin": round(len(self.order) / len(self), 4) if len(self) else 0.0,
            "most_rows_in_a_bin": int(sizes.max(initial=0)),
            "least_filled_bin": int(self.filled.min()) if len(self) else 0,
            "longest_row": self.longest,
        }


def pack(lengths: "NDArray[np.integer[Any]]", capacity: int, *, seed: int = 0) -> Packing:
    """Pack rows by best-fit decreasing, and shuffle the bins.

    From the longest row to the shortest, each goes into the bin that has the least room left among those where it
    fits, or else into a new one (D. S. Johnson, Near-optimal bin packing algorithms, 1973). Rows of one length meet
    bins of one room in bulk, so the work grows with the number of different lengths, and sorting takes most of it.
    The order in which bins come out puts all short rows together, therefore it is shuffled.

    Args:
        lengths: tokens of each row as the bins count them, integers of shape [rows].
        capacity: the most tokens in a bin.
        seed: of the shuffle. It uses a bit generator's raw numbers, which NumPy keeps the same in all its versions.

    Raises TypeError for lengths that are not integers, and RequestError that names the first row which has no token
    or does not fit: drop such rows before.
    """
    import numpy as np

    if capacity < 1:
        raise RequestError("capacity", f"bins of {capacity} tokens hold nothing", "it is 1 or more")
    tokens: NDArray[np.int64] = lengths.astype(np.int64, casting="safe")
    _refuse_unfit(tokens, capacity)
    descending = (capacity - tokens).astype(np.uint16 if capacity <= 1 << 16 else np.int64)  # 16 bits: a radix sort
    longest_first = np.argsort(descending, kind="stable")
    found, counts = np.unique(tokens, return_counts=True)
    runs = zip(found[::-1].tolist(), counts[::-1].tolist(), strict=True)
    bins = np.fromiter(chain.from_iterable(_best_fit(runs, capacity)), np.int64, len(tokens))
    number = int(bins.max(initial=-1)) + 1
    ranks = np.empty(number, np.int64)
    ranks[np.argsort(np.random.PCG64(seed).random_raw(number), kind="stable")] = np.arange(number)
    rank_of_row = np.empty(len(tokens), np.int64)
    rank_of_row[longest_first] = ranks[bins]
    starts = np.zeros(number + 1, np.int64)
    np.cumsum(np.bincount(rank_of_row, minlength=number), out=starts[1:])
    # Sums of integers below 2**53 are exact as the doubles that bincount makes of weights.
    filled = np.bincount(rank_of_row, weights=tokens, minlength=number).astype(np.int64)
    order = np.argsort(rank_of_row, kind="stable")
    return Packing(capacity, order, starts, filled, int(tokens.max(initial=0)))


def _refuse_unfit(lengths: "NDArray[np.int64]", capacity: int) -> None:
    unfit = (lengths < 1) | (lengths > capacity)
    if not unfit.any():
        return
    row = int(unfit.argmax())
    length = int(lengths[row])
    problem = "has no token to learn from" if length < 1 else f"has {length} tokens, a bin holds {capacity}"
    raise RequestError(f"row {row}", problem, "drop it" if length < 1 else "drop it or make the bins larger")


def _best_fit(runs: Iterable[tuple[int, int]], capacity: int) -> Iterator[Iterable[int]]:
    """The bins of the rows, from the longest row on; bins have the numbers in which they are opened.

    Each piece is of bins that all had the same room when rows of the same length came.

    Args:
        runs: lengths, strictly falling, and how many rows have each.
        capacity: the room of a new bin.
    """
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of by_room, ascending
    opened = 0
    for length, count in runs:
        while count:
            place = bisect_left(rooms, length)
            if place < len(rooms):
                room = rooms[place]
                bins = by_room[room]
                # A bin that took a row has less room than all others where it fits, so it takes the next one too.
                each = min(room // length, count)
                taken = bins[-(count // each) :]
                del bins[-len(taken) :]
                if not bins:
                    del rooms[place], by_room[room]
            else:
                room, each = capacity, min(capacity // length, count)
                taken = list(range(opened, opened + count // each))
                opened += len(taken)
            count -= each * len(taken)
            yield taken if each == 1 else chain.from_iterable(map(repeat, taken, repeat(each)))
            left = room - each * length
            if left:
                if left not in by_room:
                    insort(rooms, left)
                    by_room[left] = []
                by_room[left] += taken

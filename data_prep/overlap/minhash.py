"""MinHash signatures of texts, and an index that finds earlier texts of a similar signature (LSH).

`deduplication` uses it for near-duplicates and compares the texts of what is found. One hash of a shingle
gives it a bin and a rank (one-permutation hashing). Where a text has few different shingles, further rounds fill more
bins, as in Fast Similarity Sketching (Dahlgaard, Knudsen and Thorup 2017, arXiv 1704.04370); bins that are empty in the
end copy others that a random walk of their own chooses (optimal densification, Shrivastava 2017, arXiv 1703.04664). Of
the least rank in a bin one byte is kept (b-bit minwise hashing, Li and König 2010, arXiv 0910.3349).
"""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from data_prep.overlap.hashing import constants, mixed
from data_prep.overlap.native import compiled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.overlap.hashing import Hashes

    Signatures = NDArray[np.uint8]

BINS = 128
"""Bytes of a signature at most."""
RECALL = 0.99
"""The probability at least with which a pair just at the threshold becomes a candidate."""
SLACK = 0.2
"""How far a candidate's estimated similarity may be below the threshold, or the texts are not compared: four standard
deviations, sqrt(similarity × (1 - similarity) / bins)."""
BLOCK = 64
"""Shingles of which bin and rank are computed together."""
WALK = 4096
"""Rows of one bucket that are looked at, the newest first, so that a phrase in millions of rows does not cost the
square of their number; beyond it, recall is lost."""


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """Bands, and rows a band: the most rows for which 1 - (1 - threshold^rows)^bands reaches RECALL, and the fewest
    bands for them, within BINS."""
    best = (BINS, 1)
    for rows in range(1, 17):
        for bands in range(1, BINS // rows + 1):
            if 1 - (1 - threshold**rows) ** bands >= RECALL:
                best = (bands, rows)
                break
    return best


def sketch(runs: "Hashes", offsets: "NDArray[np.int64]", shingle: int, bins: int) -> "Signatures":
    """The signature of each text: uint8, texts × bins. It depends on the set of a text's shingles and `bins`.

    Args:
        runs: the hashes of the texts' shingles, from `data_prep.overlap.hashing.run_hashes`.
        offsets: the texts' `Units.offsets`.
        shingle: units in a shingle.
        bins: bytes in a signature.
    """
    import numpy as np

    texts = len(offsets) - 1
    signatures = np.zeros((texts, bins), np.uint8)
    if sketching := compiled(_sketch):
        scratch = np.empty(bins, np.uint64), *np.empty((2, BLOCK), np.uint64)
        sketching(
            runs, offsets, shingle, np.uint64(bins), _rounds(bins), _seeds(bins), constants(), *scratch, signatures
        )
        return signatures
    for row in range(texts):
        begin, end = offsets[row], offsets[row + 1]
        if begin < end:
            signatures[row] = _sketch_one(runs[begin : max(begin + 1, end - shingle + 1)], bins)
    return signatures


@functools.cache
def _rounds(bins: int) -> "NDArray[np.int64]":
    """How many rounds a text takes, by how many of the bins its first round fills; int64, bins + 1.

    One for a text of about four times as many different shingles as bins, more for a shorter one, `bins` at most. How
    many there are is estimated from the filled bins, as a set of shingles then gives one signature however often each
    of them is repeated. Two similar texts may so take different rounds, and differ in the bins that the fewer rounds
    leave empty: with twice as many instead of four times, that costs up to .009 of the recall.
    """
    import numpy as np

    rounds = np.full(bins + 1, bins, np.int64)
    rounds[bins] = 1
    shingles = -bins * np.log(1 - np.arange(1, bins) / bins)
    rounds[1:bins] = np.clip(np.ceil(4 * bins / shingles), 1, bins)
    return rounds


@functools.cache
def _seeds(bins: int) -> "Hashes":
    """One for each round, then one for each bin, which chooses the bin that it copies if it is still empty."""
    import numpy as np

    return mixed(np.arange(1, 2 * bins + 1, dtype=np.uint64) * constants()[0])


def _sketch(  # type: ignore[no-untyped-def]
    runs, offsets, shingle, wide, rounds, seeds, constants, ranks, places, drawn, signatures
):
    multiplier, mix, shift, one = constants[1], constants[2], constants[3], constants[4]
    step, none = one << shift, ~(one - one)
    low, bins = step - one, len(ranks)
    for row in range(len(offsets) - 1):
        begin = offsets[row]
        end = max(begin + 1, offsets[row + 1] - shingle + 1)
        if begin == offsets[row + 1]:
            continue
        for number in range(bins):
            ranks[number] = none
        base = one - one  # a later round ranks behind all earlier ones
        turn, turns = 0, 1
        while turn < turns:
            seed = seeds[turn]
            for block in range(begin, end, len(places)):
                some = runs[block : min(block + len(places), end)]
                for at in range(len(some)):  # many at once where the processor can
                    value = (some[at] ^ seed) * multiplier
                    value = (value ^ (value >> shift)) * mix
                    places[at] = ((value >> shift) * wide) >> shift
                    drawn[at] = ((value ^ (value >> shift)) & low) | base
                for at in range(len(some)):
                    ranks[places[at]] = min(ranks[places[at]], drawn[at])
            base = base + step
            if turn == 0:
                filled = 0
                for number in range(bins):
                    filled += ranks[number] != none
                turns = rounds[filled]
            turn += 1
        for number in range(bins):
            rank, value = ranks[number], seeds[bins + number]
            while rank == none:
                value = (value ^ (value >> shift)) * mix
                rank = ranks[((value >> shift) * wide) >> shift]
            signatures[row, number] = rank


def _sketch_one(runs: "Hashes", bins: int) -> "Signatures":
    """As the kernel, by numpy, for one text."""
    import numpy as np

    multiplier, mix, shift = constants()[1:4]
    none = np.uint64((1 << 64) - 1)
    ranks = np.full(bins, none, np.uint64)
    seeds = _seeds(bins)
    turn, turns = 0, 1
    while turn < turns:
        values = (runs ^ seeds[turn]) * multiplier
        values = (values ^ (values >> shift)) * mix
        places = (values >> shift) * np.uint64(bins) >> shift
        np.minimum.at(ranks, places, (values ^ (values >> shift)) & np.uint64((1 << 32) - 1) | np.uint64(turn << 32))
        if turn == 0:
            turns = int(_rounds(bins)[(ranks != none).sum()])
        turn += 1
    filled, values, places = ranks != none, seeds[bins:].copy(), np.arange(bins, dtype=np.uint64)
    while (empty := ~filled[places]).any():
        values[empty] = (values[empty] ^ (values[empty] >> shift)) * mix
        places[empty] = (values[empty] >> shift) * np.uint64(bins) >> shift
    signature: Signatures = ranks[places].astype(np.uint8)
    return signature


KEPT, ROW, ROWS, LEAST, FOUND = range(5)
"""Places in the state of an `Index`: the rows that are kept; the row of the batch that is next, and one past the last;
the bins that a candidate shares at least; and how many candidates were found."""


class Index:
    """The signatures of kept rows, numbered from 0 in the order in which they were kept, by band.

    Memory of a row: its signature, and 8 to 13 bytes a band; 224 to 308 bytes at a threshold of .8.
    """

    def __init__(self, threshold: float):
        import numpy as np

        self.bands, self.rows = bands_and_rows(threshold)
        self.bins = self.bands * self.rows
        self._signatures = np.zeros((1024, self.bins), np.uint8)
        self._next = np.zeros((1024, self.bands), np.int32)
        self._heads = np.full((self.bands, 1024), -1, np.int32)
        self._found = np.zeros(self.bands * WALK, np.int32)
        self._batch, self._slots = np.zeros((1024, self.bins), np.uint8), np.zeros((1024, self.bands), np.int64)
        self._numbers = np.zeros(5, np.int64)
        self._state = self._numbers.data
        self._state[LEAST] = int(self.bins * max(0.0, threshold - SLACK))
        self._slow: list[dict[bytes, list[int]]] = [{} for _ in range(self.bands)]
        self._kernels = self._bound()

    def candidates(self, signatures: "Signatures") -> Iterator[tuple[int, list[int]]]:
        """Go through rows: yields each that has candidates, with these (numbers of kept rows, ascending).

        A row without candidates is kept at once; one that is yielded is kept where `keep` is called before going on.
        """
        if not len(signatures):
            return
        state = self._state
        self._grow(state[KEPT] + len(signatures), len(signatures))
        self._stage(signatures)
        self._pass()
        while state[ROW] < state[ROWS]:
            yield state[ROW], sorted(set(self._found[: state[FOUND]].tolist()))
            state[ROW] += 1
            self._pass()

    def keep(self) -> None:
        """Keep the row that was yielded last."""
        state = self._state
        row, rows, least = state[ROW], state[ROWS], state[LEAST]
        state[ROWS], state[LEAST] = row + 1, self.bins + 1
        self._pass()
        state[ROW], state[ROWS], state[LEAST] = row, rows, least

    @property
    def memory(self) -> int:
        """Bytes of the arrays that grow with the rows, where numba is there."""
        return int(self._signatures.nbytes + self._next.nbytes + self._heads.nbytes)

    def _stage(self, signatures: "Signatures") -> None:
        """Make these the batch, to be gone through from its first row on.

        What `_pass` will look at is then in the processor's cache: here it is asked for many rows at once, in `_pass`
        it would be waited for at each.
        """
        self._batch[: len(signatures)] = signatures
        self._state[ROW], self._state[ROWS] = 0, len(signatures)
        if self._kernels:
            self._kernels[0]()

    def _pass(self) -> None:
        """Keep the batch's rows from the next one on, up to the first that has candidates, which is then the next."""
        if self._kernels:
            self._kernels[1]()
        else:
            self._pass_slowly()

    def _bound(self) -> tuple[Callable[[], Any], Callable[[], Any]] | None:
        """The kernels with the arrays as they are now; None without numba."""
        locate, passing = compiled(_locate), compiled(_pass)
        if locate is None or passing is None:
            return None
        arrays = self._batch, self._slots, self._signatures, self._next, self._heads
        shared = *(one.reshape(-1) for one in arrays), self._numbers, self.bands, self.rows
        return partial(locate, *shared, constants()), partial(passing, *shared, self._found, WALK)

    def _grow(self, rows: int, batch: int) -> None:
        """Make room for so many rows, an eighth more than needed, for a head a band for each, and for the batch."""
        import numpy as np

        room, width = len(self._signatures), self._heads.shape[1]
        if batch > len(self._batch):
            self._batch, self._slots = np.zeros((batch, self.bins), np.uint8), np.zeros((batch, self.bands), np.int64)
        elif rows <= min(room, width):
            return
        if rows > room:
            room = rows + rows // 8
            self._signatures.resize((room, self.bins), refcheck=False)
            self._next.resize((room, self.bands), refcheck=False)
        wider = self._kernels and rows > width
        if wider:
            self._heads = np.full((self.bands, 1 << (rows - 1).bit_length()), -1, np.int32)
        self._kernels = self._bound()
        if wider:
            self._fill_heads()

    def _fill_heads(self) -> None:
        state = self._state
        kept, least = state[KEPT], state[LEAST]
        state[KEPT], state[LEAST] = 0, self.bins + 1
        for start in range(0, kept, 1024):
            self._stage(self._signatures[start : min(start + 1024, kept)])
            self._pass()
        state[LEAST] = least

    def _pass_slowly(self) -> None:
        state = self._state
        while state[ROW] < state[ROWS]:
            signature, close = self._batch[state[ROW]], set()
            keys = [signature[at : at + self.rows].tobytes() for at in range(0, self.bins, self.rows)]
            for band, key in zip(self._slow, keys, strict=True):
                for one in band.get(key, [])[-WALK:]:
                    if int((self._signatures[one] == signature).sum()) >= state[LEAST]:
                        close.add(one)
            state[FOUND] = len(close)
            if close:
                self._found[: len(close)] = list(close)
                return
            self._signatures[state[KEPT]] = signature
            for band, key in zip(self._slow, keys, strict=True):
                band.setdefault(key, []).append(state[KEPT])
            state[KEPT] += 1
            state[ROW] += 1


def _locate(  # type: ignore[no-untyped-def]
    batch, slots, table, following, heads, state, bands, rows, constants
):
    """Nothing in a loop waits for what the loop has read, so that the memory is asked for many places at once."""
    multiplier, mix, shift, seen = constants[0], constants[2], constants[3], 0
    count, width = state[2] * bands, len(heads) // bands
    mask = np.uint64(width - 1)
    for number in range(count):
        key = multiplier
        for place in range(number * rows, (number + 1) * rows):
            key = key * multiplier + batch[place]
        key = (key ^ (key >> shift)) * mix
        slots[number] = (key >> shift) & mask
        slots[number] += number % bands * width
    for number in range(count):
        seen += heads[slots[number]]
    for number in range(count):
        one = max(0, heads[slots[number]]) * bands + number % bands
        seen += table[one * rows] + following[one]
    return seen


def _pass(  # type: ignore[no-untyped-def]
    batch, slots, table, following, heads, state, bands, rows, found, walk
):
    bins, number, least = bands * rows, state[0], state[3]
    state[4] = 0
    for at in range(state[1], state[2]):
        mine, places, count = batch[at * bins : (at + 1) * bins], slots[at * bands : (at + 1) * bands], 0
        for band in range(bands):
            one = heads[places[band]]
            looked = 0
            while one >= 0 and least <= bins and looked < walk:
                theirs, place = table[one * bins : (one + 1) * bins], band * rows
                while place < (band + 1) * rows and theirs[place] == mine[place]:
                    place += 1
                if place == (band + 1) * rows:
                    looked += 1
                    same = 0
                    for place in range(bins):
                        same += theirs[place] == mine[place]
                    if same >= least:
                        found[count] = one
                        count += 1
                one = following[one * bands + band]
        if count > 0:
            state[0], state[1], state[4] = number, at, count
            return
        kept, links = table[number * bins : (number + 1) * bins], following[number * bands : (number + 1) * bands]
        for band in range(bands):
            links[band] = heads[places[band]]
            heads[places[band]] = number
        for place in range(bins):
            kept[place] = mine[place]
        number += 1
    state[0], state[1] = number, state[2]

"""MinHash signatures of texts, and an index that finds earlier texts of a similar signature (LSH).

`data_prep.deduplication` uses it for near-duplicates and compares the texts of what is found. One hash of a shingle
gives it a bin and a rank (one-permutation hashing). Where a text has few different shingles, further rounds fill more
bins, as in Fast Similarity Sketching (Dahlgaard, Knudsen and Thorup 2017, arXiv 1704.04370); bins that are empty in the
end copy others that a random walk of their own chooses (optimal densification, Shrivastava 2017, arXiv 1703.04664). Of
the least rank in a bin one byte is kept (b-bit minwise hashing, Li and König 2010, arXiv 0910.3349).
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from data_prep.hashing import constants, mixed
from data_prep.native import compiled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.hashing import Hashes

    Signatures = NDArray[np.uint8]

BINS = 128
"""Bytes of a signature at most."""
RECALL = 0.99
"""The probability at least with which a pair just at the threshold becomes a candidate."""
SLACK = 0.2
"""How far a candidate's estimated similarity may be below the threshold, or the texts are not compared: four standard
deviations, sqrt(similarity × (1 - similarity) / bins)."""
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
        runs: the hashes of the texts' shingles, from `data_prep.hashing.run_hashes`.
        offsets: the texts' `Units.offsets`.
        shingle: units in a shingle.
        bins: bytes in a signature.
    """
    import numpy as np

    texts = len(offsets) - 1
    signatures = np.zeros((texts, bins), np.uint8)
    if sketching := compiled(_sketch):
        ranks = np.empty(bins, np.uint64)
        sketching(runs, offsets, shingle, np.uint64(bins), _rounds(bins), _seeds(bins), constants(), ranks, signatures)
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
    runs, offsets, shingle, wide, rounds, seeds, constants, ranks, signatures
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
            for at in range(begin, end):
                value = (runs[at] ^ seed) * multiplier
                value = (value ^ (value >> shift)) * mix
                place = ((value >> shift) * wide) >> shift
                rank = ((value ^ (value >> shift)) & low) | base
                ranks[place] = min(ranks[place], rank)
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


class _Rows(NamedTuple):
    """Rows as the kernels take them."""

    signatures: "Signatures"
    slots: "NDArray[np.int64]"
    """The places of their bands in the heads, rows × bands."""


class Index:
    """The signatures of kept rows, numbered from 0 in the order in which they were kept, by band.

    Memory of a row: its signature, and 8 to 13 bytes a band; 224 to 308 bytes at a threshold of .8.
    """

    def __init__(self, threshold: float):
        import numpy as np

        self.bands, self.rows = bands_and_rows(threshold)
        self.bins = self.bands * self.rows
        self.kept = 0
        self._least = int(self.bins * max(0.0, threshold - SLACK))
        self._signatures = np.zeros((1024, self.bins), np.uint8)
        self._next = np.zeros((1024, self.bands), np.int32)
        self._heads = np.full((self.bands, 1024), -1, np.int32)
        self._found = np.zeros(self.bands * WALK, np.int32)
        self._state = np.zeros(2, np.int64)
        self._slow: list[dict[bytes, list[int]]] = [{} for _ in range(self.bands)]
        self._grow(0)

    def candidates(self, signatures: "Signatures") -> Iterator[tuple[int, list[int]]]:
        """Go through rows: yields each that has candidates, with these (numbers of kept rows, ascending).

        A row without candidates is kept at once; one that is yielded is kept where `keep` is called before going on.
        """
        self._grow(self.kept + len(signatures))
        rows, row = self._located(signatures), 0
        while row < len(signatures):
            if rows is None:
                close = self._pass_slowly(signatures[row])
            else:
                row, close = self._pass(rows, row, self._least)
            if close:
                yield row, close
            row += 1

    def keep(self, signature: "Signatures") -> None:
        """Keep one row."""
        if rows := self._located(signature[None]):
            self._pass(rows, 0, self.bins + 1)
        else:
            self._keep_slowly(signature)

    @property
    def memory(self) -> int:
        """Bytes of the arrays, where numba is there."""
        return int(self._signatures.nbytes + self._next.nbytes + self._heads.nbytes)

    def _located(self, signatures: "Signatures") -> _Rows | None:
        """Rows for `_pass`, None without numba.

        What `_pass` will look at is then in the processor's cache: here it is asked for many rows at once, in `_pass`
        it would be waited for at each.
        """
        import numpy as np

        if (locate := compiled(_locate)) is None:
            return None
        signatures, slots = signatures.view(), np.empty((len(signatures), self.bands), np.int64)
        signatures.setflags(write=False)  # so that all that come are of one type
        mask = np.uint64(self._heads.shape[1] - 1)
        locate(signatures, slots, mask, constants(), self._signatures, self._next, self._heads)
        return _Rows(signatures, slots)

    def _pass(self, rows: _Rows, row: int, least: int) -> tuple[int, list[int]]:
        """Keep rows from `row` on up to the first that has candidates: which one that is, and the candidates."""
        if (run := compiled(_pass)) is None:
            raise RuntimeError("rows are located with numba only")
        self._state[0] = self.kept
        tables = self._signatures, self._next, self._heads
        row = run(rows.signatures, rows.slots, *tables, row, least, WALK, self._found, self._state)
        self.kept, count = self._state.tolist()
        return row, sorted(set(self._found[:count].tolist())) if count else []

    def _grow(self, rows: int) -> None:
        """Make room for so many rows, an eighth more than needed, and for a head a band for each row at least."""
        import numpy as np

        if rows > len(self._signatures):
            room = rows + rows // 8
            self._signatures.resize((room, self.bins), refcheck=False)
            self._next.resize((room, self.bands), refcheck=False)
        wider = rows > self._heads.shape[1] and compiled(_pass) is not None
        if wider:
            self._heads = np.full((self.bands, 1 << (rows - 1).bit_length()), -1, np.int32)
            self._fill_heads()

    def _fill_heads(self) -> None:
        kept, self.kept = self.kept, 0
        for start in range(0, kept, 1024):
            if again := self._located(self._signatures[start : min(start + 1024, kept)]):
                self._pass(again, 0, self.bins + 1)

    def _pass_slowly(self, signature: "Signatures") -> list[int]:
        close = set()
        for band, key in enumerate(self._keys(signature)):
            for one in self._slow[band].get(key, [])[-WALK:]:
                if int((self._signatures[one] == signature).sum()) >= self._least:
                    close.add(one)
        if not close:
            self._keep_slowly(signature)
        return sorted(close)

    def _keep_slowly(self, signature: "Signatures") -> None:
        self._signatures[self.kept] = signature
        for band, key in enumerate(self._keys(signature)):
            self._slow[band].setdefault(key, []).append(self.kept)
        self.kept += 1

    def _keys(self, signature: "Signatures") -> list[bytes]:
        return [signature[at : at + self.rows].tobytes() for at in range(0, self.bins, self.rows)]


def _locate(signatures, slots, mask, constants, table, following, heads):  # type: ignore[no-untyped-def]
    """Nothing in a loop waits for what the loop has read, so that the memory is asked for many places at once."""
    multiplier, mix, shift, seen = constants[0], constants[2], constants[3], 0
    bands, rows, width = slots.shape[1], signatures.shape[1] // slots.shape[1], heads.shape[1]
    signatures, slots = signatures.reshape(-1), slots.reshape(-1)
    table, following, heads = table.reshape(-1), following.reshape(-1), heads.reshape(-1)
    for number in range(len(slots)):
        key = multiplier
        for place in range(number * rows, (number + 1) * rows):
            key = key * multiplier + signatures[place]
        key = (key ^ (key >> shift)) * mix
        slots[number] = (key >> shift) & mask
        slots[number] += number % bands * width
    for number in range(len(slots)):
        seen += heads[slots[number]]
    for number in range(len(slots)):
        one = max(0, heads[slots[number]]) * bands + number % bands
        seen += table[one * rows] + following[one]
    return seen


def _pass(  # type: ignore[no-untyped-def]
    signatures, slots, table, following, heads, row, least, walk, found, state
):
    texts, bins = signatures.shape
    bands = slots.shape[1]
    rows, heads = bins // bands, heads.reshape(-1)
    for at in range(row, texts):
        mine, places, count = signatures[at], slots[at], 0
        for band in range(bands):
            one = heads[places[band]]
            looked = 0
            while one >= 0 and least <= bins and looked < walk:
                theirs, place = table[one], band * rows
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
                one = following[one, band]
        state[1] = count
        if count > 0:
            return at
        number = state[0]
        for band in range(bands):
            following[number, band] = heads[places[band]]
            heads[places[band]] = number
        table[number] = mine
        state[0] = number + 1
    return texts

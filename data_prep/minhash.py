"""MinHash signatures of texts, and an index that finds earlier texts of a similar signature (LSH).

`data_prep.deduplication` uses it for near-duplicates and compares the texts of what is found. One hash of a shingle
gives it a bin and a rank (one-permutation hashing). Where a text has few shingles, further rounds fill more bins, as in
Fast Similarity Sketching (Dahlgaard, Knudsen and Thorup 2017, arXiv 1704.04370); bins that are empty in the end copy
others that a random walk of their own chooses (optimal densification, Shrivastava 2017, arXiv 1703.04664). Of the least
rank in a bin one byte is kept (b-bit minwise hashing, Li and König 2010, arXiv 0910.3349).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data_prep.hashing import compiled, constants, mixed

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
    """The signature of each text: uint8, texts × bins. It depends on nothing but the text, `shingle` and `bins`.

    Args:
        runs: the hashes of the texts' shingles, from `data_prep.hashing.run_hashes`.
        offsets: the texts' `Units.offsets`.
        shingle: units in a shingle.
        bins: bytes in a signature.
    """
    import numpy as np

    texts = len(offsets) - 1
    signatures = np.zeros((texts, bins), np.uint8)
    if kernel := compiled(_sketch):
        low, wide = np.uint64((1 << 32) - 1), np.uint64(bins)
        kernel(runs, offsets, shingle, _seeds(bins), constants(), low, wide, np.zeros(bins, np.uint64), signatures)
        return signatures
    for row in range(texts):
        begin, end = offsets[row], offsets[row + 1]
        if begin < end:
            signatures[row] = _sketch_one(runs[begin : max(begin + 1, end - shingle + 1)], bins)
    return signatures


def _rounds(shingles: int, bins: int) -> int:
    """Rounds: one for a text of twice as many shingles as bins, more for a shorter one, `bins` at most."""
    return min(bins, -(-2 * bins // shingles))


def _seeds(bins: int) -> "Hashes":
    """One for each round, then one for each bin, which chooses the bin that it copies if it is still empty."""
    import numpy as np

    return mixed(np.arange(1, 2 * bins + 1, dtype=np.uint64) * constants()[0])


def _sketch(  # type: ignore[no-untyped-def]
    runs, offsets, shingle, seeds, constants, low, wide, ranks, signatures
):
    multiplier, mix, shift = constants[1], constants[2], constants[3]
    bins, none, step = len(ranks), ~(low - low), low + constants[4]
    for row in range(len(offsets) - 1):
        begin = offsets[row]
        end = max(begin + 1, offsets[row + 1] - shingle + 1)
        if begin == offsets[row + 1]:
            continue
        rounds = min(bins, -(-2 * bins // (end - begin)))
        ranks[:] = none
        base = low - low  # a later round ranks behind all earlier ones
        for turn in range(rounds):
            seed = seeds[turn]
            for at in range(begin, end):
                value = (runs[at] ^ seed) * multiplier
                value = (value ^ (value >> shift)) * mix
                place = ((value >> shift) * wide) >> shift
                rank = ((value ^ (value >> shift)) & low) | base
                ranks[place] = min(ranks[place], rank)
            base = base + step
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
    for turn in range(_rounds(len(runs), bins)):
        values = (runs ^ seeds[turn]) * multiplier
        values = (values ^ (values >> shift)) * mix
        places = (values >> shift) * np.uint64(bins) >> shift
        np.minimum.at(ranks, places, (values ^ (values >> shift)) & np.uint64((1 << 32) - 1) | np.uint64(turn << 32))
    filled, values, places = ranks != none, seeds[bins:].copy(), np.arange(bins, dtype=np.uint64)
    while (empty := ~filled[places]).any():
        values[empty] = (values[empty] ^ (values[empty] >> shift)) * mix
        places[empty] = (values[empty] >> shift) * np.uint64(bins) >> shift
    signature: Signatures = ranks[places].astype(np.uint8)
    return signature


class Index:
    """The signatures of kept rows, numbered from 0 in the order in which they were kept, by band.

    Memory of a row: its signature, and 6 to 13 bytes a band; 202 to 340 bytes at a threshold of .8.
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
        self._slow: list[dict[bytes, list[int]]] = [{} for _ in range(self.bands)]

    def candidates(self, signatures: "Signatures") -> Iterator[tuple[int, list[int]]]:
        """Go through rows: yields each that has candidates, with these (numbers of kept rows, ascending).

        A row without candidates is kept at once; one that is yielded is kept where `keep` is called before going on.
        """
        self._grow(self.kept + len(signatures))
        row = 0
        while row < len(signatures):
            if compiled(_pass) is None:
                close = self._pass_slowly(signatures[row])
            else:
                row, close = self._pass(signatures, row, self._least)
            if close:
                yield row, close
            row += 1

    def keep(self, signature: "Signatures") -> None:
        """Keep one row."""
        if compiled(_pass) is None:
            self._keep_slowly(signature)
        else:
            self._pass(signature[None], 0, self.bins + 1)

    @property
    def memory(self) -> int:
        """Bytes of the arrays, where numba is there."""
        return int(self._signatures.nbytes + self._next.nbytes + self._heads.nbytes)

    def _pass(self, signatures: "Signatures", row: int, least: int) -> tuple[int, list[int]]:
        """Keep rows from `row` on up to the first that has candidates: which one that is, and the candidates."""
        import numpy as np

        mask, state = np.uint64(self._heads.shape[1] - 1), np.array([self.kept, 0])
        tables = (self._signatures, self._next, self._heads)
        kernel: Any = compiled(_pass)
        row = kernel(*tables, constants(), mask, self.rows, signatures, row, self._found, state, least, WALK)
        self.kept = int(state[0])
        return int(row), np.unique(self._found[: state[1]]).tolist() if state[1] else []

    def _grow(self, rows: int) -> None:
        """Make room for so many rows, an eighth more than needed, and for a head a band for each two rows at least."""
        import numpy as np

        if rows > len(self._signatures):
            room = rows + rows // 8
            self._signatures.resize((room, self.bins), refcheck=False)
            self._next.resize((room, self.bands), refcheck=False)
        if rows > 2 * self._heads.shape[1] and compiled(_pass) is not None:
            self._heads = np.full((self.bands, 1 << (rows - 1).bit_length()), -1, np.int32)
            kept, self.kept = self.kept, 0
            self._pass(self._signatures[:kept], 0, self.bins + 1)

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


def _pass(  # type: ignore[no-untyped-def]
    table, following, heads, constants, mask, rows, signatures, row, found, state, least, walk
):
    multiplier, mix, shift = constants[0], constants[2], constants[3]
    bins, bands = signatures.shape[1], len(heads)
    slots = [mask for _ in range(bands)]
    for at in range(row, len(signatures)):
        count = 0
        for band in range(bands):
            key = multiplier
            for place in range(band * rows, band * rows + rows):
                key = key * multiplier + signatures[at, place]
            key = (key ^ (key >> shift)) * mix
            slots[band] = (key >> shift) & mask
            one = heads[band, slots[band]]
            looked = 0
            while one >= 0 and least <= bins and looked < walk:
                place = band * rows
                while place < band * rows + rows and table[one, place] == signatures[at, place]:
                    place += 1
                if place == band * rows + rows:
                    looked += 1
                    same = 0
                    for place in range(bins):
                        same += table[one, place] == signatures[at, place]
                    if same >= least:
                        found[count] = one
                        count += 1
                one = following[one, band]
        if count > 0:
            state[1] = count
            return at
        number = state[0]
        for band in range(bands):
            following[number, band] = heads[band, slots[band]]
            heads[band, slots[band]] = number
        for place in range(bins):
            table[number, place] = signatures[at, place]
        state[0] = number + 1
    return len(signatures)

"""Near-duplicates in two halves: rows are sketched in any process, and one finds the duplicates by their signatures.

`shard_work` does the first half and `gathering` the second. What is found is what `deduplication` finds in one process.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from data_prep.overlap.deduplication import Duplicate, NearDuplicates, Overlap, texts_of
from data_prep.overlap.hashing import run_hashes, split_units
from data_prep.overlap.minhash import Index, bands_and_rows, sketch

if TYPE_CHECKING:
    from data_prep.overlap.minhash import Signatures

Row = dict[str, Any]


def sketch_rows(rows: Sequence[Row], config: NearDuplicates) -> "Signatures":
    """The signatures of rows, uint8, for a `SketchedDeduplicator`; of each row for itself."""
    units = split_units(texts_of(rows, config.columns), config.shingle)
    runs = run_hashes(units, config.size)
    bands, of_a_band = bands_and_rows(config.threshold)
    return sketch(runs, units.offsets, config.size, bands * of_a_band)


class SketchedDeduplicator:
    """As `NearDeduplicator`, of rows that were sketched before, perhaps by others: it finds the same.

    It holds no text: `read` gives the row again that has a number, which it asks for only to compare two texts. A row
    that is kept takes the index's memory and 8 bytes.
    """

    def __init__(self, config: NearDuplicates, read: Callable[[int], Row]):
        self._config, self._read = config, read
        self._index = Index(config.threshold)
        self._numbers = array("q")
        self._overlap = Overlap(config)

    def find(self, signatures: "Signatures", numbers: Sequence[int]) -> list[Duplicate | None]:
        """Of each row, what it duplicates; None where it is kept. `numbers` are what `read` knows the rows by."""
        found: list[Duplicate | None] = [None] * len(numbers)
        done = 0
        for row, candidates in self._index.candidates(signatures):
            self._numbers.extend(numbers[done:row])
            done = row + 1
            found[row] = self._compare(numbers[row], candidates)
            if found[row] is None:
                self._index.keep()
                self._numbers.append(numbers[row])
        self._numbers.extend(numbers[done:])
        return found

    @property
    def memory(self) -> int:
        """Bytes that are remembered."""
        return self._index.memory + 8 * len(self._numbers)

    def _compare(self, number: int, candidates: list[int]) -> Duplicate | None:
        mine = _text(self._read(number), self._config)
        for candidate in candidates:
            row = self._read(self._numbers[candidate])
            theirs = _text(row, self._config)
            similarity = 1.0 if theirs == mine else self._overlap.similarity(mine, theirs)
            if similarity >= self._config.threshold:
                return Duplicate(row["id"], similarity)
        return None


def _text(row: Row, config: NearDuplicates) -> bytes:
    """As `Units.text` has it."""
    words = texts_of([row], config.columns)[0].split()
    end = " " if words and config.shingle == "words" else ""
    return (" ".join(words) + end).encode("utf-8", "surrogatepass")

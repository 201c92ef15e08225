"""Deduplication: of equal rows, or of rows with nearly the same text, the first is kept. `curation` calls both.

Rows are taken in their order, the sources one after the other, so what is kept does not depend on how they were cut
into shards or batches, nor on who read them. Each row that goes names a row that stays.
"""

import hashlib
import os
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from data_prep.hashing import Unit, Units, compiled, run_hashes, split_one, split_units
from data_prep.minhash import Index, sketch
from reasonforge.config import Strict

if TYPE_CHECKING:
    from data_prep.hashing import Hashes

Row = dict[str, Any]


class Deduplicator:
    """Remembers a 16-byte hash and the id of every row that was kept; about 250 bytes a row.

    Two rows are equal where prompt and response have the same words between spaces: how much white space stands
    between them does not count, upper and lower case do. The hash is BLAKE2b, as no other row must ever be taken for
    an equal one: it comes with Python, nobody can make two texts of one hash, and of the time that reading a row takes
    it is a small part, so xxh3, which is faster but neither, would gain little.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def first(self, row: Row) -> str | None:
        """The id of the first row that is equal to this one; None where this is the first, which is remembered."""
        text = "\0".join(" ".join(row[column].split()) for column in ("prompt", "response"))
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in self._seen:
            self._seen[key] = row["id"]
            return None
        return self._seen[key]


class NearDuplicates(Strict):
    """When two rows have nearly the same text: their sets of shingles (runs of words or characters) overlap.

    Case and punctuation count, as in mathematics they are content; how much white space stands between words does not.
    """

    threshold: float = Field(default=0.8, ge=0.5, le=1)
    """Jaccard similarity of the two sets, shared shingles over all, from which rows are near-duplicates. 0.8 as in
    Lee et al. 2021 (arXiv 2107.06499) and much since."""
    shingle: Unit = "words"
    """What a shingle is made of: words between white space, or characters for languages without spaces."""
    size: int = Field(default=5, ge=1)
    """Words or characters in a shingle. A text of fewer is one shingle. 5 words as in FineWeb (arXiv 2406.17557); for
    characters take 9 or more."""
    columns: list[str] = Field(default=["prompt", "response"], min_length=1)
    """The columns that are the row's text, one after the other."""


@dataclass(frozen=True)
class Duplicate:
    """What a row that goes is a duplicate of."""

    of: str
    """The id of a row that is kept, the earliest of the similar ones that were found."""
    similarity: float
    """Their Jaccard similarity: of the sets of shingles themselves, not an estimate."""


class NearDeduplicator:
    """Finds near-duplicates by MinHash and LSH (`data_prep.minhash`), and compares the texts of all that it finds.

    A row is a duplicate where it is similar enough to a row that is kept; being similar to a row that was itself
    dropped does not count, so similarity is not handed on from row to row. The texts of kept rows wait on the disk, in
    a nameless file in `directory` as large as they are. In memory a million rows take 240 MB at the default threshold
    (measured; between doublings of its tables 200 to 340), and each row 16 bytes and its id.
    """

    def __init__(self, config: NearDuplicates, directory: Path):
        self._config = config
        self._index = Index(config.threshold)
        self._kept = _Kept(directory)

    def find(self, rows: Sequence[Row]) -> list[Duplicate | None]:
        """Of each row, what it duplicates; None where it is kept. Any number of rows at a time; a thousand is fast."""
        config = self._config
        texts = ["\n".join([row[column] for column in config.columns]) for row in rows]
        units = split_units(texts, config.shingle)
        runs = run_hashes(units, config.size)
        signatures = sketch(runs, units.offsets, config.size, self._index.bins)
        found: list[Duplicate | None] = [None] * len(rows)
        written = 0
        for row, candidates in self._index.candidates(signatures):
            self._kept.add(units, rows, written, row)
            written = row + 1
            found[row] = self._compare(units, runs, row, candidates)
            if found[row] is None:
                self._index.keep(signatures[row])
                self._kept.add(units, rows, row, row + 1)
        self._kept.add(units, rows, written, len(rows))
        return found

    @property
    def memory(self) -> int:
        """Bytes that are remembered, ids included."""
        return self._index.memory + self._kept.memory

    def _compare(self, units: Units, runs: "Hashes", row: int, candidates: list[int]) -> Duplicate | None:
        config, mine = self._config, _text_of(units, row)
        for number in candidates:
            theirs = self._kept.text(number)
            if theirs == mine:
                return Duplicate(self._kept.id(number), 1.0)
            other = split_one(theirs, config.shingle)
            similarity = _jaccard(units, runs, row, other, run_hashes(other, config.size), config.size)
            if similarity >= config.threshold:
                return Duplicate(self._kept.id(number), similarity)
        return None


class _Kept:
    """Texts (on the disk) and ids of the rows that are kept, by number."""

    def __init__(self, directory: Path):
        self._file = tempfile.TemporaryFile(dir=directory, buffering=1 << 20)  # noqa: SIM115 (closed with the object)
        self._ends = array("q", [0])
        self._flushed = 0
        self._ids = bytearray()
        self._id_ends = array("q", [0])

    def add(self, units: Units, rows: Sequence[Row], start: int, stop: int) -> None:
        """Remember rows `start` to `stop` of a batch."""
        if start == stop:
            return
        begin = int(units.rows[start])
        self._file.write(units.text[begin : units.rows[stop]].data)
        base = self._ends[-1] - begin
        self._ends.extend((units.rows[start + 1 : stop + 1] + base).tolist())
        for row in rows[start:stop]:
            self._ids += row["id"].encode("utf-8", "surrogatepass")
            self._id_ends.append(len(self._ids))

    def text(self, number: int) -> bytes:
        begin, end = self._ends[number], self._ends[number + 1]
        if end > self._flushed:
            self._file.flush()
            self._flushed = self._ends[-1]
        return os.pread(self._file.fileno(), end - begin, begin)

    def id(self, number: int) -> str:
        return self._ids[self._id_ends[number] : self._id_ends[number + 1]].decode("utf-8", "surrogatepass")

    @property
    def memory(self) -> int:
        return 8 * (len(self._ends) + len(self._id_ends)) + len(self._ids)


def _text_of(units: Units, row: int) -> bytes:
    return units.text[units.rows[row] : units.rows[row + 1]].tobytes()


def _jaccard(units: Units, runs: "Hashes", row: int, other: Units, other_runs: "Hashes", size: int) -> float:
    """The similarity of a row of `units` and the only one of `other`."""
    kernel = compiled(_overlap)
    if kernel is None:
        ours, theirs = _shingles(units, row, size), _shingles(other, 0, size)
        return len(ours & theirs) / len(ours | theirs)
    import numpy as np

    begin, end = units.offsets[row], units.offsets[row + 1]
    if begin == end or not len(other.hashes):  # two empty texts are equal bytes, so one is not
        return 0.0
    mine = (units.text, units.starts[begin : end + 1], runs[begin:end])
    width = 1 << (2 * (int(end - begin) + len(other_runs))).bit_length()
    table = np.zeros(width, np.int32)
    shared, together = kernel(*mine, other.text, other.starts, other_runs, size, table, np.uint64(width - 1))
    return float(shared / together)


def _shingles(units: Units, row: int, size: int) -> set[bytes]:
    begin, end = int(units.offsets[row]), int(units.offsets[row + 1])
    starts, text = (units.starts[begin : end + 1] - units.starts[begin]).tolist(), _text_of(units, row)
    count = max(min(end - begin, 1), end - begin - size + 1)
    return {text[starts[at] : starts[min(at + size, end - begin)]] for at in range(count)}


def _overlap(  # type: ignore[no-untyped-def]
    text, starts, runs, other_text, other_starts, other_runs, size, table, mask
):
    """A kernel: how many shingles two texts share, and have together.

    `table` (zeros) becomes a hash set of shingles: 1 + the place of one of the first text, which turns negative once
    the other has it too, or of the other behind those of the first. Shingles are equal where their bytes are.
    """
    units, count, others = len(runs), max(1, len(runs) - size + 1), max(1, len(other_runs) - size + 1)
    one = mask // mask
    shared, together = 0, 0
    for number in range(count + others):
        mine = number < count
        at = number if mine else number - count
        begin = starts[at] if mine else other_starts[at]
        end = starts[min(at + size, units)] if mine else other_starts[min(at + size, len(other_runs))]
        slot = (runs[at] if mine else other_runs[at]) & mask
        while table[slot] != 0:
            held = abs(table[slot]) - 1
            theirs = held - count
            start = starts[held] if held < count else other_starts[theirs]
            stop = (
                starts[min(held + size, units)] if held < count else other_starts[min(theirs + size, len(other_runs))]
            )
            same = 0
            if stop - start == end - begin:
                while same < end - begin and (text[begin + same] if mine else other_text[begin + same]) == (
                    text[start + same] if held < count else other_text[start + same]
                ):
                    same += 1
            if same == end - begin:
                break
            slot = (slot + one) & mask
        if table[slot] == 0:
            table[slot] = number + 1
            together += 1
        elif not mine and 0 < table[slot] <= count:
            table[slot] = -table[slot]
            shared += 1
    return shared, together

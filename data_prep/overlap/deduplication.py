"""Deduplication: of equal rows, or of rows with nearly the same text, the first is kept. `curation` calls both.

Rows are taken in their order, the sources one after the other, so what is kept does not depend on how they were cut
into shards or batches, nor on who read them. Each row that goes names a row that stays.
"""

import hashlib
import os
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import Field

from data_prep.overlap.hashing import (
    BLOCK,
    Unit,
    Units,
    constants,
    run_hashes,
    shared,
    shared_words,
    split_units,
    weights,
)
from data_prep.overlap.minhash import Index, sketch
from data_prep.overlap.native import compiled
from reasonforge.config import Strict

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
        return self.first_of(equality_key(row), row["id"])

    def first_of(self, key: bytes, row_id: str) -> str | None:
        """As `first`, of a row whose `equality_key` is known."""
        known = len(self._seen)
        first = self._seen.setdefault(key, row_id)
        return None if len(self._seen) > known else first


def equality_key(row: Row) -> bytes:
    """The 16 bytes that are the same for equal rows only."""
    text = "\0".join(" ".join(row[column].split()) for column in ("prompt", "response"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


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


def texts_of(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The text of each row."""
    if len(columns) == 1:
        return [row[columns[0]] for row in rows]
    return ["\n".join([row[column] for column in columns]) for row in rows]


class NearDeduplicator:
    """Finds near-duplicates by MinHash and LSH (`minhash`), and compares the texts of all that it finds.

    A row is a duplicate where it is similar enough to a row that is kept; being similar to a row that was itself
    dropped does not count, so similarity is not handed on from row to row. The texts of kept rows wait on the disk, in
    a nameless file in `directory` as large as they are. In memory a million rows take 240 MB at the default threshold
    (measured; between doublings of its tables 220 to 310), and each row 16 bytes and its id.
    """

    def __init__(self, config: NearDuplicates, directory: Path):
        self._config = config
        self._index = Index(config.threshold)
        self._kept = _Kept(directory)
        self._overlap = Overlap(config)

    def find(self, rows: Sequence[Row]) -> list[Duplicate | None]:
        """Of each row, what it duplicates; None where it is kept. Any number of rows at a time; a thousand is fast."""
        config = self._config
        units = split_units(texts_of(rows, config.columns), config.shingle)
        runs = run_hashes(units, config.size)
        signatures = sketch(runs, units.offsets, config.size, self._index.bins)
        found: list[Duplicate | None] = [None] * len(rows)
        kept: list[int] = []  # rows of this batch, whose texts are not yet on the disk
        looked = 0
        for row, candidates in self._index.candidates(signatures):
            kept.extend(range(looked, row))
            looked = row + 1
            found[row] = self._compare(units, rows, kept, row, candidates)
            if found[row] is None:
                self._index.keep()
                kept.append(row)
        kept.extend(range(looked, len(rows)))
        self._kept.add(units, kept, [rows[row]["id"] for row in kept])
        return found

    @property
    def memory(self) -> int:
        """Bytes that are remembered, ids included."""
        return self._index.memory + self._kept.memory

    def _compare(
        self, units: Units, rows: Sequence[Row], kept: list[int], row: int, candidates: list[int]
    ) -> Duplicate | None:
        mine, before = _text_of(units, row), len(self._kept)
        for number in candidates:
            theirs = self._kept.text(number) if number < before else _text_of(units, kept[number - before])
            similarity = 1.0 if theirs == mine else self._overlap.similarity(mine, theirs)
            if similarity >= self._config.threshold:
                of = self._kept.id(number) if number < before else rows[kept[number - before]]["id"]
                return Duplicate(of, similarity)
        return None


class _Kept:
    """Texts (on the disk) and ids of the rows that are kept, by number."""

    def __init__(self, directory: Path):
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed with the object)
        self._ends = array("q", [0])
        self._ids = bytearray()
        self._id_ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, units: Units, rows: list[int], ids: list[str]) -> None:
        """Remember rows of a batch, behind those that are there."""
        import numpy as np

        if not rows:
            return
        places = np.asarray(rows)
        begins, ends = units.rows[places], units.rows[places + 1]
        gaps = np.flatnonzero(begins[1:] != ends[:-1])
        pieces = zip(begins[[0, *(gaps + 1)]].tolist(), ends[[*gaps, -1]].tolist(), strict=True)
        text = units.text.data
        self._file.write(b"".join([text[begin:end] for begin, end in pieces]))
        self._file.flush()
        self._ends.frombytes((np.cumsum(ends - begins) + self._ends[-1]).tobytes())
        names = [name.encode("utf-8", "surrogatepass") for name in ids]
        self._ids += b"".join(names)
        self._id_ends.extend(accumulate(map(len, names), initial=self._id_ends.pop()))

    def text(self, number: int) -> bytes:
        begin, end = self._ends[number], self._ends[number + 1]
        return os.pread(self._file.fileno(), end - begin, begin)

    def id(self, number: int) -> str:
        return self._ids[self._id_ends[number] : self._id_ends[number + 1]].decode("utf-8", "surrogatepass")

    @property
    def memory(self) -> int:
        return 8 * (len(self._ends) + len(self._id_ends)) + len(self._ids)


class Overlap:
    """Compares the sets of shingles of texts. The shingles themselves, as another may have a shingle's hash."""

    def __init__(self, config: NearDuplicates):
        self._unit, self._size, self._room = config.shingle, config.size, 0

    def similarity(self, mine: bytes, other: bytes) -> float:
        """Jaccard, of two texts that are as `Units.text` has them, and not equal."""
        if not mine or not other:
            return 0.0
        sharing = compiled(shared)
        if sharing is None or self._unit != "words":
            texts = [text.decode("utf-8", "surrogatepass") for text in (mine, other)]
            both, together = self._of_units(split_units(texts, self._unit), sharing)
        else:
            self._make_room(len(mine) + len(other))
            self._text[: len(mine)] = mine
            self._text[len(mine) : len(mine) + len(other)] = other
            self._lengths[0], self._lengths[1] = len(mine), len(other)
            both, together = self._sharing(), self._lengths[2]
        return both / together

    def _of_units(self, units: Units, sharing: Callable[..., int] | None) -> tuple[int, int]:
        """How many shingles the texts share and have together."""
        import numpy as np

        if sharing is None:
            ours, theirs = (_shingles(units, row, self._size) for row in (0, 1))
            return len(ours & theirs), len(ours | theirs)
        runs, together = run_hashes(units, self._size), np.zeros(1, np.int64)
        table = np.empty(1 << (2 * len(runs)).bit_length(), np.int32)
        text = np.append(units.text, np.zeros(BLOCK, np.uint8))
        both = sharing(text, units.starts, runs, units.offsets, self._size, table, together)
        return both, int(together[0])

    def _make_room(self, size: int) -> None:
        """Bind the kernel to arrays that hold texts of so many bytes together, where they are not large enough."""
        import numpy as np

        if size <= self._room:
            return
        self._room = 2 * size
        words = size + 2  # of one byte and a space
        text, lengths = np.zeros(self._room + BLOCK, np.uint8), np.zeros(3, np.int64)
        starts, (hashes, runs) = np.empty(words, np.int64), np.empty((2, words), np.uint64)
        offsets, table = np.zeros(3, np.int64), np.empty(1 << self._room.bit_length(), np.int32)
        self._text, self._lengths = text.data, lengths.data
        if kernel := compiled(shared_words):
            self._sharing = partial(
                kernel, text, lengths, starts, hashes, runs, offsets, self._size, weights(), constants(), table
            )


def _text_of(units: Units, row: int) -> bytes:
    return units.text[units.rows[row] : units.rows[row + 1]].tobytes()


def _shingles(units: Units, row: int, size: int) -> set[bytes]:
    begin, end = int(units.offsets[row]), int(units.offsets[row + 1])
    starts, text = (units.starts[begin : end + 1] - units.starts[begin]).tolist(), _text_of(units, row)
    count = max(min(end - begin, 1), end - begin - size + 1)
    return {text[starts[at] : starts[min(at + size, end - begin)]] for at in range(count)}

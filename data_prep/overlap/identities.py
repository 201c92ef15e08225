"""Which ids come again, over all the files of a dataset, and where each was first.

`gathering` and `traces` use it: ids tell rows apart, so no two rows of what they write may have the same.
"""

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from data_prep.sources.rows import place_of

_BUCKETS = 256
_ID_BYTES, _CONTENT_BYTES, _NUMBER_BYTES = 16, 8, 6
_RECORD_BYTES = _ID_BYTES + _CONTENT_BYTES + _NUMBER_BYTES


@dataclass(frozen=True)
class Repeat:
    """A row whose id an earlier one has. Rows are numbered from 0 in the order in which they were added."""

    number: int
    first: int
    """The first row with the id."""
    same: bool
    """Whether it is that row again: of equal content, and from another file."""


class Identities:
    """Takes the ids of all rows, then tells which come again.

    A row takes 30 bytes until they are compared, and 8 for its line; a row whose id comes again then takes 17.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._lines = array("q")
        self._sources: list[Path] = []
        self._begins: list[int] = []

    def enter(self, source: Path) -> None:
        """Say that the rows from here on are of this source."""
        self._sources.append(source)
        self._begins.append(len(self._lines))

    def add(self, row_id: str, line: int, content: bytes = b"") -> None:
        """Take the id of the next row.

        Args:
            line: its line in its source, or its number where that has no lines, from 1.
            content: the same for rows of equal content, as `deduplication.equality_key` is; empty where that does not
                count, so that no row is another one again.
        """
        digest = blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=_ID_BYTES).digest()
        number = len(self._lines).to_bytes(_NUMBER_BYTES, "big")
        self._buckets[digest[0]] += digest + content[:_CONTENT_BYTES].ljust(_CONTENT_BYTES, b"\0") + number
        self._lines.append(line)

    def place(self, number: int) -> str:
        """Where a row is, for an error."""
        return place_of(*self.source(number))

    def source(self, number: int) -> tuple[Path, int]:
        """The source of a row, and its line there."""
        return self._sources[self._source(number)], self._lines[number]

    def repeats(self) -> Iterator[Repeat]:
        """The rows whose ids earlier ones have, in their order. To be asked for once: the ids are given up."""
        for number, first, same in heapq.merge(*map(self._of_bucket, self._buckets)):
            yield Repeat(number, first, bool(same) and self._source(number) != self._source(first))

    def _of_bucket(self, bucket: bytearray) -> Iterator[tuple[int, int, int]]:
        numbers, firsts, same = array("q"), array("q"), bytearray()
        seen: dict[bytes, tuple[int, bytes]] = {}
        for start in range(0, len(bucket), _RECORD_BYTES):
            record = bytes(bucket[start : start + _RECORD_BYTES])
            digest, content = record[:_ID_BYTES], record[_ID_BYTES:-_NUMBER_BYTES]
            number = int.from_bytes(record[-_NUMBER_BYTES:], "big")
            first, its_content = seen.setdefault(digest, (number, content))
            if first != number:
                numbers.append(number)
                firsts.append(first)
                same.append(content == its_content and any(content))
        seen.clear()
        bucket.clear()
        yield from zip(numbers, firsts, same, strict=True)

    def _source(self, number: int) -> int:
        return bisect_right(self._begins, number) - 1

"""What a tensor's bytes are made of: fragments of files. Every conversion, comparison and merge is a list of these."""

import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from checkpoints_conversion.dtypes import ITEM_BYTES
from checkpoints_conversion.untrusted import open_regular
from reasonforge.errors import RequestError

BLOCK_BYTES = 1 << 20
"""How much of a tensor is in memory at once, for each worker: it stays in the processor's cache."""

PAGE_BYTES = 4096
"""Whole pages are written where possible: half a page costs the kernel a read, and the file its large folios."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """`rows` runs of `width` bytes, `source_pitch` apart in a file and `pitch` apart in the tensor."""

    file: Path
    source_offset: int
    offset: int
    """Where the first run goes, in bytes from the tensor's start."""
    rows: int
    width: int
    source_pitch: int
    pitch: int

    @property
    def contiguous(self) -> bool:
        """Whether it is one run of bytes on both sides."""
        return self.rows == 1 or self.width == self.source_pitch == self.pitch

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return self.rows * self.width


@dataclass(frozen=True, slots=True)
class Assembly:
    """A tensor (or a chunk of one) that exists only as fragments; what no fragment covers is zero."""

    label: str
    dtype: str
    shape: tuple[int, ...]
    fragments: tuple[Fragment, ...]
    """Sorted by offset."""

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def contiguous(self) -> bool:
        """Whether whole fragments can be copied, one after the other."""
        return all(fragment.contiguous for fragment in self.fragments)

    @property
    def pitch(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


class Files:
    """Files opened for reading once, and closed together. Each worker has its own."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    def descriptor(self, path: Path) -> int:
        """The open file. Raises RequestError where there is none, or no regular one."""
        if path not in self._open:
            self._open[path] = open_regular(path)
            self._stack.callback(os.close, self._open[path])
        return self._open[path]

    def read(self, path: Path, offset: int, view: memoryview) -> None:
        """Fill `view` from a place in a file. Raises RequestError where the file ends before."""
        descriptor, done = self.descriptor(path), 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise RequestError(str(path), f"ends at byte {offset + done}, before its tensors do", "get it again")
            done += count


def blocks(assembly: Assembly, files: Files, place: int = 0, by_rows: bool = False) -> Iterator[tuple[int, memoryview]]:
    """The tensor's bytes in order, as (offset, bytes) of about BLOCK_BYTES; each view is valid until the next.

    Args:
        place: where in a file the bytes will be written; the blocks then end where its pages end.
        by_rows: cut between rows, so that tensors of one shape are cut alike, however they are stored.
    """
    if assembly.contiguous and not by_rows:
        step, first = BLOCK_BYTES, BLOCK_BYTES - place % PAGE_BYTES
    else:
        step = first = max(BLOCK_BYTES // max(assembly.pitch, 1), 1) * assembly.pitch
    buffer = bytearray(min(step, assembly.bytes))
    starts = [fragment.offset for fragment in assembly.fragments]
    reach = _reaches(assembly.fragments)
    for begin in [0, *range(first, assembly.bytes, step)] if assembly.bytes else []:
        end = min(begin + step if begin else first, assembly.bytes)
        view = memoryview(buffer)[: end - begin]
        within = assembly.fragments[bisect_left(reach, begin + 1) : bisect_left(starts, end)]
        if sum(_fill(fragment, files, view, begin, end) for fragment in within) < end - begin:
            _zero_gaps(within, view, begin, end)
        yield begin, view


def _reaches(fragments: Sequence[Fragment]) -> list[int]:
    """For each fragment, the furthest byte that it or one before it reaches: increasing, so that it can be searched."""
    reach, found = 0, []
    for fragment in fragments:
        reach = max(reach, fragment.offset + (fragment.rows - 1) * fragment.pitch + fragment.width)
        found.append(reach)
    return found


def _fill(fragment: Fragment, files: Files, view: memoryview, begin: int, end: int) -> int:
    """Put the part of a fragment that falls into [begin, end) at its place; returns how many bytes that is."""
    if fragment.contiguous:
        low, high = max(fragment.offset, begin), min(fragment.offset + fragment.bytes, end)
        if low < high:
            source = fragment.source_offset + low - fragment.offset
            files.read(fragment.file, source, view[low - begin : high - begin])
        return max(high - low, 0)
    first = max(0, -((fragment.offset - begin) // fragment.pitch))
    last = min(fragment.rows, -((fragment.offset - end) // fragment.pitch))
    if first >= last:
        return 0
    width, pitch = fragment.width, fragment.source_pitch
    rows = memoryview(bytearray((last - first - 1) * pitch + width))
    files.read(fragment.file, fragment.source_offset + first * pitch, rows)
    for number in range(last - first):
        place = fragment.offset + (first + number) * fragment.pitch - begin
        view[place : place + width] = rows[number * pitch : number * pitch + width]
    return (last - first) * width


def _zero_gaps(fragments: Sequence[Fragment], view: memoryview, begin: int, end: int) -> None:
    """Zero what no fragment covers. Only padding is uncovered, and it lies behind the last row that is covered."""
    reach = max([begin, *_reaches(fragments)])
    if reach < end:
        view[reach - begin :] = bytes(end - reach)
